"""What the control thread needs of reception, be it on one rank or on several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ["RankReceiver", "ReceptionState", "StudyReceiver"]


class ReceptionState(Protocol):
    """What reception knows of one simulation; `melissa._melissa.SimulationState` is one."""

    @property
    def simulation_id(self) -> int: ...  # noqa: D102
    @property
    def attempt(self) -> int: ...  # noqa: D102
    @property
    def draw(self) -> int: ...  # noqa: D102
    @property
    def status(self) -> str: ...  # noqa: D102
    @property
    def steps_complete(self) -> int: ...  # noqa: D102
    @property
    def host(self) -> str: ...  # noqa: D102
    @property
    def error(self) -> str: ...  # noqa: D102


class StudyReceiver(Protocol):
    """Reception of a study: `melissa._melissa.Receiver`, whose texts say what each method does, is one."""

    @property
    def reception_over(self) -> bool: ...  # noqa: D102
    def register(self, simulation_id: int, attempt: int, draw: int, parameters: Sequence[float]) -> None: ...  # noqa: D102
    def finish(self, simulation_id: int, reason: str) -> None: ...  # noqa: D102
    def abandon_attempt(self, simulation_id: int) -> None: ...  # noqa: D102
    def changes(self, timeout: float) -> Sequence[ReceptionState]: ...  # noqa: D102
    def counters(self) -> dict[str, Any]: ...  # noqa: D102
    def stop(self) -> None: ...  # noqa: D102
    def ledger(self, final_reason: str | None = None) -> dict[str, int]: ...  # noqa: D102
    def refusals(self) -> list[str]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class RankReceiver(StudyReceiver, Protocol):
    """Reception on one server rank of several."""

    def confirm(self, simulation_id: int) -> None:
        """Take note that a simulation, finished here, is so on every rank: it is final."""
