"""How far training is: written by the training thread, read by the control thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["StudyProgress", "StudyRates"]


class StudyProgress:
    """Counters of one server rank's training, and the last losses.

    `phase` is one of "starting", "preparing to train" (in `on_train_start`), "waiting for the watermark",
    "training", "draining", "finishing".
    """

    NB_LOSSES = 16  # a study that logs a loss per region, say, is not to flood the terminal

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._losses: dict[str, float] = {}
        self._training_started: float | None = None
        self._training_ended: float | None = None
        self.started = time.monotonic()
        self.phase = "starting"
        self.is_saving = False
        """Whether a checkpoint is being written: whoever ends the server waits for that."""
        self.saves_when_stopped = False
        """Whether training, when it is interrupted, ends its step and writes a checkpoint: as above."""
        self.batches = 0
        self._batches_missed = 0  # of those that other ranks trained, see `ranks_are_after`
        self.samples_delivered = 0
        self.batches_expected: int | None = None
        self.trainer_wait_s = 0.0
        self.waits_for_data = False
        self.rank_wait_s = 0.0
        """Seconds that training has waited for other ranks before its batches, since this start."""
        self._waited_before = 0.0  # before a restart, as below
        self._trained_before = 0.0
        self.watermark = 0
        self.samples_per_second_of_all = 0.0
        """Of all ranks together, lately; known on rank 0."""

    def training_begins(self) -> None:
        """Start the clock of training: the watermark is reached."""
        self.phase = "training"
        self._training_started = time.monotonic()

    def training_ends(self) -> None:
        """Stop the clock of training."""
        self.phase = "finishing"
        if self._training_started is not None:
            self._training_ended = time.monotonic()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Tell that a checkpoint is written within; may stand within another one."""
        before, self.is_saving = self.is_saving, True
        try:
            yield
        finally:
            self.is_saving = before

    @property
    def training_seconds(self) -> float:
        """Seconds of training, from the watermark to the end, or to now."""
        if self._training_started is None:
            return self._trained_before
        return self._trained_before + (self._training_ended or time.monotonic()) - self._training_started

    @property
    def seconds(self) -> float:
        """Seconds since the server was constructed."""
        return time.monotonic() - self.started

    def waited(self, seconds: float) -> None:
        """Take note of how long training has waited for data since this start of the server."""
        self.trainer_wait_s = self._waited_before + seconds

    def saved(self) -> dict[str, Any]:
        """Return the counters that a restarted server goes on with."""
        with self._lock:
            return {
                "batches": self.batches,
                "samples_delivered": self.samples_delivered,
                "trainer_wait_s": self.trainer_wait_s,
                "seconds": self.seconds,
                "training_seconds": self.training_seconds,
            }

    def resume(self, saved: dict[str, Any], batches_of_ranks: int) -> None:
        """Go on with the counters that `saved` gave before a restart, when ranks were after that batch."""
        with self._lock:
            self.batches = saved["batches"]
            self._batches_missed = batches_of_ranks - self.batches
            self.samples_delivered = saved["samples_delivered"]
            self.trainer_wait_s = self._waited_before = saved["trainer_wait_s"]
            self._trained_before = saved["training_seconds"]
            self.started -= saved["seconds"]

    def ranks_are_after(self, batch: int) -> None:
        """Take note that all ranks are after that batch, some of which this one may have had no part in."""
        with self._lock:
            self._batches_missed = batch - self.batches

    @property
    def batches_of_ranks(self) -> int:
        """The number of batches after which all ranks are, between two batches.

        It is larger than `batches` where other ranks have trained on when this one had run dry.
        """
        return self.batches + self._batches_missed

    def delivered(self, nb_samples: int) -> None:
        """Count one batch that was trained."""
        with self._lock:
            self.batches += 1
            self.samples_delivered += nb_samples

    def scalar(self, tag: str, value: float) -> None:
        """Take note of a logged scalar: those whose tag says "loss" are shown."""
        if "loss" not in tag.lower():
            return
        with self._lock:
            if tag in self._losses or len(self._losses) < self.NB_LOSSES:
                self._losses[tag] = value

    def snapshot(self) -> dict[str, Any]:
        """Return the counters and losses of one moment."""
        with self._lock:
            return {
                "phase": self.phase,
                "is_saving": self.is_saving,
                "saves_when_stopped": self.saves_when_stopped,
                "batches": self.batches,
                "samples_delivered": self.samples_delivered,
                "batches_expected": -1 if self.batches_expected is None else self.batches_expected,
                "trainer_wait_s": self.trainer_wait_s,
                "waits_for_data": self.waits_for_data,
                "rank_wait_s": self.rank_wait_s,
                "losses": dict(self._losses),
            }


class StudyRates:
    """Samples and batches per second, over the last seconds."""

    WINDOW = 5.0  # seconds

    def __init__(self) -> None:
        self._history: deque[tuple[float, int, int]] = deque()

    def at(self, now: float, samples: int, batches: int) -> dict[str, float]:
        """Return the rates at `now` (monotonic), when so many had been trained in all."""
        history = self._history
        history.append((now, samples, batches))
        while len(history) > 2 and now - history[0][0] > self.WINDOW:
            history.popleft()
        since, samples_then, batches_then = history[0]
        elapsed = max(now - since, 1e-9)
        return {
            "samples_per_second": (samples - samples_then) / elapsed,
            "batches_per_second": (batches - batches_then) / elapsed,
        }
