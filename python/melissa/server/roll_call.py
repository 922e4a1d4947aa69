"""Which of a server's ranks have come while others wait for them: it is said, and the wait has an end."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from melissa.exceptions import RankLostError
from melissa.server.environment import StudyEnvironment
from melissa.server.ranks.deadline import leave_at_once

__all__ = ["IN_MPI", "STARTED", "RankWait", "RollCall", "launched_rank", "named"]

logger = logging.getLogger("melissa")

STARTED, IN_MPI = "started", "in_mpi"
"""How far ranks are: their processes run, and MPI has started."""

# In this order: an mpiexec inside of a job step of Slurm leaves all its ranks the step's number.
_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "PALS_RANKID", "SLURM_PROCID")


def launched_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return this process's rank as whoever started it says, before MPI has; None where nobody does."""
    for name in _RANK_VARIABLES:
        if (text := environment.get(name, "")).isdecimal():
            return int(text)
    return None


def named(ranks: list[int]) -> str:
    """Return "server rank 1", "server ranks 1, 2"."""
    return f"server rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


class RollCall:
    """Files in the study's folder by which ranks say how far they are: MPI does not tell whom it waits for.

    `stage` is one of this module's.
    """

    def __init__(self, environment: StudyEnvironment, nb_ranks: int, stage: str) -> None:
        self._ranks = range(nb_ranks)
        self._folder = environment.output_dir / ".melissa"
        self._name = f"rank{{}}.{environment.study_epoch}.{stage}"

    def answer(self, rank: int) -> None:
        """Say that `rank` has come."""
        try:
            self._folder.mkdir(exist_ok=True)
            self._file(rank).touch()
        except OSError as error:
            logger.warning(f"rank {rank} cannot say that it has come, others may miss it for long: {error}")

    def missing(self) -> list[int]:
        """Return the ranks that have not come."""
        return [rank for rank in self._ranks if not self._file(rank).exists()]

    def close(self) -> None:
        """Remove the files, when all have come."""
        for rank in self._ranks:
            self._file(rank).unlink(missing_ok=True)

    def _file(self, rank: int) -> Path:
        return self._folder / self._name.format(rank)


class RankWait:
    """A wait for other ranks at the start of the server: who is missing is said, and it has an end.

    `missing` says who, no rank if that is not known; `hint` ends the message. A `rank` other than 0 has a
    little more patience, since rank 0 can tell the launcher and the terminal.
    """

    LIMIT = 240.0
    """Seconds. The launcher's own, for a server from which it hears nothing, is a little longer."""
    REMINDER_PERIOD = 30.0
    MORE_OF_OTHERS = 5.0

    def __init__(self, missing: Callable[[], list[int]], hint: str, rank: int | None = 0) -> None:
        self._more = self.MORE_OF_OTHERS if rank else 0.0
        self._missing = missing
        self._hint = hint
        self._began = self._reminded = time.monotonic()

    def check(self) -> None:
        """Log a reminder if it is time for one; `RankLostError` when the wait is too long."""
        now = time.monotonic()
        if now - self._began > self.LIMIT + self._more:
            raise RankLostError(f"{self._who()} come within {self.LIMIT:g} s: {self._hint}")
        if now - self._reminded > self.REMINDER_PERIOD:
            self._reminded = now
            logger.warning(f"{self._who()} come for {now - self._began:.0f} s, others wait: {self._hint}")

    def _who(self) -> str:
        ranks = self._missing()
        if not ranks:
            return "some server rank, it is not known which, has not"
        return f"{named(ranks)} {'have' if len(ranks) > 1 else 'has'} not"

    @contextmanager
    def beside_call(self) -> Iterator[None]:
        """Check beside a call that does not look around itself; when it takes too long the process ends."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.2):
                try:
                    self.check()
                except RankLostError as error:
                    logger.error(f"the server fails: {error}")
                    leave_at_once(1)

        threading.Thread(target=watch, name="melissa-rank-wait", daemon=True).start()
        try:
            yield
        finally:
            over.set()
