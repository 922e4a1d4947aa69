"""Whether a server that died is started again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from melissa.scheduler.job import Job, State

__all__ = ["Restarts"]

FRUITLESS_LIMIT = 3
"""Deaths in a row, without a batch more than before, that show that a further start is of no use."""
_KILLED = 128  # what shells and mpiexec add to the number of a signal


class Restarts:
    """Counts the deaths of the server; `is_allowed` is ``launcher_config.fault_tolerance``."""

    def __init__(self, is_allowed: bool) -> None:
        self._is_allowed = is_allowed
        self._has_registered = False
        self._furthest = (0, 0)
        self._has_progressed = False
        self._fruitless = 0

    def registered(self) -> None:
        """Take note of a server that has come up: the user's class can be made."""
        self._has_registered = True

    def progress(self, values: Mapping[str, Any]) -> None:
        """Take the values of a Progress message."""
        reached = int(values.get("batches", 0)), int(values.get("samples_trained", 0))
        if any(now > before for now, before in zip(reached, self._furthest, strict=True)):
            self._has_progressed = True
        self._furthest = max(reached[0], self._furthest[0]), max(reached[1], self._furthest[1])

    def refusal(self, server: Job) -> str | None:
        """Take note of a death; return why the server is not started again, None if it is."""
        if not self._is_allowed:
            return "launcher_config.fault_tolerance is false"
        if server.state is State.ERROR:
            return "the scheduler does not take it"
        if not self._has_registered and not _was_killed(server):
            return "it had not come up even once"
        self._fruitless = 0 if self._has_progressed else self._fruitless + 1
        self._has_progressed = False
        if self._fruitless >= FRUITLESS_LIMIT:
            return f"it has died {self._fruitless} times without a batch more than before"
        return None


def _was_killed(server: Job) -> bool:
    code = server.exit_code
    return code is not None and (code < 0 or code > _KILLED)
