"""Server ranks that wait for each other: one is full, so that its clients wait, and another has too little.

A client that waits for room on one rank sends nothing to the others meanwhile, and training draws on all
ranks together. Which steps come first is the solvers' affair, so that this can happen in any study whose
buffers are small beside what a simulation sends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from melissa.exceptions import FatalError
from melissa.server.figures import RankFigures
from melissa.server.simulation import Simulation

__all__ = ["RankBalance"]

logger = logging.getLogger("melissa")


class RankBalance:
    """Looks for such ranks, lifts the watermark once if that may help, and ends the study where nothing does.

    `lift_watermark` lifts it on all ranks. `patience` is how many seconds without any news are enough where
    it is not sure that no client can go on; None is never.
    """

    SETTLED = 2.0
    """Seconds without a sample or a batch after which ranks are looked at."""

    def __init__(self, lift_watermark: Callable[[], None], batch_size: int, patience: float | None) -> None:
        self._lift_watermark = lift_watermark
        self._batch_size = batch_size
        self._patience = patience
        self._seen: object = None
        self._seen_at = time.monotonic()
        self._has_lifted = False

    def look(self, ranks: Sequence[RankFigures], live: Sequence[Simulation]) -> None:
        """Look at the figures of all ranks, and at the simulations that have a job; from time to time.

        `FatalError` names the ranks that wait for each other, and says what to change.
        """
        now = time.monotonic()
        progress = [(each.counters.get("samples_received"), each.batches, each.phase) for each in ranks]
        if progress != self._seen:
            self._seen, self._seen_at = progress, now
        quiet = now - self._seen_at
        full = next((each for each in ranks if self._is_full(each)), None)
        low = min(
            (each for each in ranks if each is not full and not each.reception_over),
            key=lambda each: each.population,
            default=None,
        )
        if full is None or low is None or quiet < self.SETTLED:
            return
        if low.population < low.watermark and not self._has_lifted:
            self._lift(full, low)
        elif self._is_hungry(low):
            # Every client that has a job waits for room; one that waits for something else may yet go on.
            is_sure = sum(int(each.counters.get("samples_waiting", 0)) for each in ranks) >= len(live)
            if is_sure or (self._patience is not None and quiet > self._patience):
                raise FatalError(self._text(full, low))

    @staticmethod
    def _is_full(rank: RankFigures) -> bool:
        return rank.population >= rank.capacity > 0 and rank.counters.get("samples_waiting", 0) > 0

    def _is_hungry(self, rank: RankFigures) -> bool:
        waits = rank.waits_for_data or rank.phase == "waiting for the watermark"
        return waits and rank.population < self._batch_size

    def _lift(self, full: RankFigures, low: RankFigures) -> None:
        self._has_lifted = True
        self._seen_at = time.monotonic()
        logger.warning(
            f"server rank {full.rank} is full ({full.population} samples) and clients wait for room there, "
            f"while rank {low.rank} has {low.population} samples, and its watermark is {low.watermark}: the "
            "watermark is lifted on all ranks, training starts with what is there"
        )
        self._lift_watermark()

    def _text(self, full: RankFigures, low: RankFigures) -> str:
        waiting = int(full.counters.get("samples_waiting", 0))
        return (
            f"the server's ranks wait for each other: rank {full.rank} is full ({full.population} samples; "
            f"{waiting} more wait for room, and so do the clients that sent them), while rank {low.rank} has "
            f"{low.population}, too few for a batch of {self._batch_size}; ranks train together, so that no "
            f"room will come. Set dl_config.buffer_size, {full.capacity} now, so that a rank holds what "
            "simulations send to it ahead of the others, let more clients run at once "
            "(launcher_config.job_limit), or change dl_config.distribution (round_robin or simulation)"
        )
