"""The wait for the watermark: training starts when every rank's buffer holds enough samples."""

from __future__ import annotations

import enum
import logging
import time
from typing import TYPE_CHECKING

from melissa.server.deep_learning.checkpointing import write_last

if TYPE_CHECKING:
    from melissa.server.deep_learning.base_dl_server import DeepMelissaServer

__all__ = ["wait_for_watermark"]

logger = logging.getLogger("melissa")

STEP = 0.2  # seconds, as below
REMINDER_PERIOD = 30.0


class _Flag(enum.IntFlag):
    """A rank's share of one look at the watermark."""

    BELOW = 1
    STOP = 2


def wait_for_watermark(server: DeepMelissaServer) -> bool:
    """Wait on every rank until all have reached their watermark; False when the study is to stop.

    The ranks look together, several times a second, and come to the same answer.
    """
    buffer, ending, progress = server.buffer, server._ending, server._progress
    is_ready = False
    progress.saves_when_stopped = server.checkpoint_interval > 0
    start = reminder = time.perf_counter()
    while True:
        # A stop ends reception, and so the wait for samples.
        is_ready = is_ready or ending.check() or buffer.native.wait_ready(STEP)
        mine = _Flag(0) if is_ready else _Flag.BELOW
        if ending.check():
            mine |= _Flag.STOP
        agreed = _Flag(server.comm.flags(mine).result()[0])
        if _Flag.STOP in agreed:
            _keep_what_has_come(server)
            return False
        if _Flag.BELOW not in agreed:
            break
        now = time.perf_counter()
        if now - reminder > REMINDER_PERIOD:
            reminder = now
            logger.info(f"training has waited {now - start:.0f} s for data: {server._describe_study()}")
    # The predefined training loop says so anew; one of the study's own has no last checkpoint to wait for.
    progress.saves_when_stopped = False
    population, watermark = len(buffer), progress.watermark
    if buffer.native.closed and population < watermark:
        logger.warning(
            f"reception is over and the buffer holds {population} samples, so that its watermark of "
            f"{watermark} cannot be reached: training starts with what is there"
        )
    return True


def _keep_what_has_come(server: DeepMelissaServer) -> None:
    """Write a checkpoint of a study that is interrupted before its first batch; every rank comes here."""
    is_interrupted = server.comm.any(server._ending.is_interrupted)
    if is_interrupted and server._progress.saves_when_stopped:
        write_last(server, server.checkpoint_state, is_interrupted=True)
    server._progress.saves_when_stopped = False
