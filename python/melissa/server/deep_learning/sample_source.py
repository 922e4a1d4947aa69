"""Samples of a buffer one after the other, with waits that notice a failure or a stop."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from melissa._melissa import Sample
from melissa.exceptions import EndOfData, WaitTimeout
from melissa.server.deep_learning.reservoir import BaseQueue, BufferType
from melissa.server.ending import StudyEnding
from melissa.server.progress import StudyProgress
from melissa.server.simulation import SimulationData

__all__ = ["PolledWait", "SampleSource"]

logger = logging.getLogger("melissa")

T = TypeVar("T")


class PolledWait:
    """Waits for data in short steps.

    Parameters
    ----------
    ending
        Looked at in each step: its error is raised, its stop ends the data.
    describe
        Says in one line where the study stands, for the log when a wait is long.
    progress
        Told of waits that take longer than a step.
    """

    STEP = 0.2  # seconds, as below
    REMINDER_PERIOD = 30.0

    def __init__(
        self,
        ending: StudyEnding,
        describe: Callable[[], str] = lambda: "",
        progress: StudyProgress | None = None,
    ) -> None:
        self._ending = ending
        self._describe = describe
        self._progress = progress or StudyProgress()

    def result_of(self, attempt: Callable[[float], T]) -> T | None:
        """Return what ``attempt(timeout)`` gives once it raises no `WaitTimeout`; None at the data's end."""
        start = time.perf_counter()
        reminder = start + self.REMINDER_PERIOD
        self._progress.waits_for_data = False
        while not self._ending.check():
            try:
                return attempt(self.STEP)
            except WaitTimeout:
                self._progress.waits_for_data = True
                now = time.perf_counter()
                if now >= reminder:
                    reminder = now + self.REMINDER_PERIOD
                    logger.info(f"training has waited {now - start:.0f} s for data: {self._describe()}")
            except EndOfData:
                return None
        return None


class SampleSource:
    """Gives the samples of a buffer one by one; `admit` may refuse some, which are passed over.

    They are drawn a batch at a time if `by_batches`, else when they are asked for. Those that were drawn
    before a restart, `restored`, come first.
    """

    def __init__(
        self,
        buffer: BaseQueue,
        batch_size: int,
        wait: PolledWait,
        admit: Callable[[Sample, SimulationData], bool] | None = None,
        *,
        by_batches: bool = True,
        restored: Sequence[Sample] = (),
    ) -> None:
        self._buffer = buffer
        self._wait = wait
        self._admit = admit
        # A BatchReservoir promises that no sample comes twice in a batch: it is asked for whole ones.
        self._at_once = batch_size if by_batches or buffer.kind is BufferType.BatchReservoir else 1
        self._drawn: deque[Sample] = deque(restored)

    @property
    def wait_seconds(self) -> float:
        """Seconds that were waited for data since the first sample."""
        return self._buffer.data_wait_seconds

    def next(self) -> tuple[Sample, SimulationData] | None:
        """Return the next sample and the view of it; None at the end of the data, or of the study."""
        while True:
            if not self._drawn:
                samples = self._wait.result_of(self._draw)
                if samples is None:
                    return None
                self._drawn.extend(samples)
            sample = self._drawn.popleft()
            view = self._buffer.view(sample)
            if self._admit is None or self._admit(sample, view):
                return sample, view

    def drawn(self) -> list[Sample]:
        """Return the samples that were drawn and not yet given."""
        return list(self._drawn)

    def _draw(self, timeout: float) -> list[Sample]:
        if self._at_once == 1:
            return [self._buffer.native.get(timeout)]
        return self._buffer.native.get_batch(self._at_once, timeout)
