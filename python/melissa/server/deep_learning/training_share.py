"""How much of a study's training is done: one number from 0 to 1, for learning-rate schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from melissa.server.deep_learning.reservoir import BaseQueue, BufferType

if TYPE_CHECKING:
    from melissa._melissa import Receiver
    from melissa.server.progress import StudyProgress

__all__ = ["TrainingShare"]


class TrainingShare:
    """The share of training that is done; it never decreases.

    Of a FIFO or FIRO, it is the share of all deliveries. How often a reservoir delivers a sample depends on
    speeds, so there it follows the data: the samples that have come beyond the watermark, and those that
    were drawn in the drain, of as many as both can be. While nobody knows how many time steps a simulation
    sends it stays 0.

    The figure of one rank is `here`, and `value` what ranks have agreed on: rank 0's.
    """

    def __init__(self) -> None:
        self.value = 0.0
        self.samples_expected: int | None = None
        """Samples that come to this rank; None while that is not known."""
        self._source: tuple[BaseQueue, Receiver, StudyProgress] | None = None

    def follow(self, buffer: BaseQueue, receiver: Receiver, progress: StudyProgress) -> None:
        """Look at these from now on."""
        self._source = buffer, receiver, progress

    def here(self) -> float:
        """Return this rank's figure as of now."""
        if self._source is None:
            return 0.0
        buffer, receiver, progress = self._source
        complete = receiver.ledger()["complete"]
        # Clients that were given up have sent less than was expected.
        expected = complete if buffer.native.closed else self.samples_expected
        if not expected:
            return 0.0
        if buffer.kind in (BufferType.FIFO, BufferType.FIRO):
            return min(1.0, progress.samples_delivered / (expected * buffer.pseudo_epochs))
        before = min(buffer.watermark, expected)
        most_in_drain = min(buffer.maxsize, expected)
        remaining = buffer.native.remaining
        come = min(max(complete - before, 0), expected - before)
        drained = 0 if remaining is None else max(0, most_in_drain - remaining)
        return (come + drained) / (expected - before + most_in_drain)

    def raise_to(self, share: float) -> None:
        """Take over what was agreed on."""
        self.value = max(self.value, share)

    def end(self) -> None:
        """All data are trained."""
        self.value = 1.0
