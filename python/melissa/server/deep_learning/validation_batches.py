"""Batches for validation, of simulations that are run for it: kept in memory, never trained on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from melissa._melissa import Sample

__all__ = ["ValidationBatches"]

logger = logging.getLogger("melissa")


class ValidationBatches:
    """An iterable of the batches of all samples for validation that have come so far.

    It may be iterated again and again, and grows as long as such simulations send; their order is that of
    arrival. Batches are made as those of training are, once, in the thread that iterates; the last one may
    be short, until further samples fill it.

    Parameters
    ----------
    take
        Gives the samples that have come since it was called last.
    make_batch
        Makes a batch of samples, as the training step gets it.
    batch_size
        Samples of a batch.
    restored
        Those of before a restart, which come first.
    keeps_unsaved
        Whether checkpoints are written: until the next one, what has come is kept for `take_unsaved`.
    """

    def __init__(
        self,
        take: Callable[[], list[Sample]],
        make_batch: Callable[[list[Sample]], Any],
        batch_size: int,
        *,
        restored: Sequence[Sample] = (),
        keeps_unsaved: bool = False,
    ) -> None:
        self._take = take
        self._make_batch = make_batch
        self._batch_size = batch_size
        self._batches: list[Any] = []
        self._rest: list[Sample] = []
        self._short: Any = None
        self._keeps_unsaved = keeps_unsaved
        self._lock = threading.Lock()  # of these two
        self._came: list[Sample] = list(restored)
        self._unsaved: list[Sample] = []
        self.nb_samples = 0
        """Samples that have come so far, as of the last look."""

    def __iter__(self) -> Iterator[Any]:
        self.look()
        yield from self._batches
        if self._rest:
            if self._short is None:
                self._short = self._make_batch(self._rest)
            yield self._short

    def __len__(self) -> int:
        """Return the number of batches as of the last look."""
        return len(self._batches) + bool(self._rest)

    def look(self) -> bool:
        """Take what has come; say whether there is any batch."""
        with self._lock:
            self._receive()
            samples, self._came = self._came, []
        if samples:
            self.nb_samples += len(samples)
            self._rest += samples
            self._short = None
            while len(self._rest) >= self._batch_size:
                self._batches.append(self._make_batch(self._rest[: self._batch_size]))
                del self._rest[: self._batch_size]
            logger.info(f"{self.nb_samples} samples for validation are here, in {len(self)} batches")
        return bool(self)

    def take_unsaved(self) -> list[Sample]:
        """Return the samples that have come since the last call; any thread may call it."""
        with self._lock:
            self._receive()
            samples, self._unsaved = self._unsaved, []
        return samples

    def put_back(self, samples: list[Sample]) -> None:
        """Have samples that could not be written come first the next time."""
        with self._lock:
            self._unsaved[:0] = samples

    def _receive(self) -> None:
        samples = self._take()
        self._came += samples
        if self._keeps_unsaved:
            self._unsaved += samples

    def __bool__(self) -> bool:
        return len(self) > 0
