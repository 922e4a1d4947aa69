"""Counting what was trained: for the ledger, and for the progress view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from melissa.server.progress import StudyProgress

if TYPE_CHECKING:
    from melissa._melissa import Batch, Sample

__all__ = ["TrainedAccounting"]


class Ledger(Protocol):
    """Who is told that samples were trained: the receiver."""

    def mark_trained(self, what: Batch | Sequence[Sample]) -> None:
        """Take note of the keys in `what`."""


class TrainedAccounting:
    """Tells the ledger and the progress view of every batch whose training step has returned."""

    def __init__(self, ledger: Ledger, progress: StudyProgress) -> None:
        self._ledger = ledger
        self._progress = progress

    def trained(self, what: Batch | Sequence[Sample]) -> None:
        """Count a batch: its samples are trained."""
        self._ledger.mark_trained(what)
        self._progress.delivered(len(what))

    def waited(self, seconds: float) -> None:
        """Take note of how long training has waited for data in all."""
        self._progress.waited(seconds)
