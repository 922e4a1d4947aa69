"""The figures of a running study, as the server tells them, and what follows from how they change."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from melissa.launcher.wording import significant

__all__ = ["StudyFigures"]


class StudyFigures:
    """The last report of the server, the waits between the last two, and the time that is left."""

    def __init__(self) -> None:
        """Start the study's clock."""
        self.started = time.monotonic()
        self.phase = "starting"
        self.restarts = 0
        self.is_over = False
        self.values: dict[str, Any] = {}
        self.trainer_wait = 0.0
        """Share of the time between the last two reports that the trainer waited for data."""
        self.receiver_wait = 0.0
        """Share of that time that the receiver waited for room in the buffer."""
        self._reported: float | None = None
        self._working_since: float | None = None

    def report(self, values: Mapping[str, Any]) -> None:
        """Take a Progress message's values."""
        now = time.monotonic()
        if self._reported is not None and now > self._reported:
            elapsed = now - self._reported
            self.trainer_wait = self._growth("trainer_wait_s", values) / elapsed
            self.receiver_wait = self._growth("receiver_wait_s", values) / elapsed
        self._reported = now
        self.values.update(values)
        self.phase = str(values.get("phase", self.phase))
        if self._working_since is None and self.done > 0:
            self._working_since = now

    @property
    def standing(self) -> str:
        """What the study does, and which start of the server does it."""
        return f"{self.phase}, restart {self.restarts}" if self.restarts else self.phase

    def number(self, name: str) -> float:
        """Return a figure; 0 while it is not known, and for what is no number."""
        value = self.values.get(name)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0

    def rate(self, name: str) -> str:
        """Return a figure in words, as a rate: ``31.1/s``."""
        return f"{significant(self.number(name))}/s"

    @property
    def receives_samples(self) -> bool:
        """Whether the server tells of samples: one that only runs simulations has none."""
        return "samples_received" in self.values

    @property
    def losses(self) -> dict[str, float]:
        """The last losses, by tag."""
        losses = self.values.get("losses")
        if not isinstance(losses, dict):
            return {}
        return {str(tag): float(value) for tag, value in losses.items() if isinstance(value, int | float)}

    @property
    def elapsed(self) -> float:
        """Seconds since the study was started."""
        return time.monotonic() - self.started

    @property
    def done(self) -> float:
        """Share of the whole work that is done: of batches if their number is known, else of samples."""
        for part, whole in (
            ("batches", "batches_expected"),
            ("samples_received", "samples_expected"),
            ("simulations_finished", "simulations_planned"),
        ):
            if self.number(whole) > 0:
                return min(1.0, self.number(part) / self.number(whole))
        return 0.0

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take at the mean speed so far; None while that says too little."""
        if self.is_over or self._working_since is None or not 0.01 <= self.done < 1.0:
            return None
        working = time.monotonic() - self._working_since
        return None if working < 3.0 else working * (1.0 - self.done) / self.done

    def _growth(self, name: str, values: Mapping[str, Any]) -> float:
        value = values.get(name)
        return max(0.0, float(value) - self.number(name)) if isinstance(value, int | float) else 0.0
