"""The wait for the watermark: training starts when every rank's buffer holds enough samples."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from melissa.exceptions import WaitTimeout
from melissa.server.deep_learning.sample_source import PolledWait

if TYPE_CHECKING:
    from melissa.server.deep_learning.base_dl_server import DeepMelissaServer

__all__ = ["wait_for_watermark"]

logger = logging.getLogger("melissa")


def wait_for_watermark(server: DeepMelissaServer) -> bool:
    """Wait on every rank until all have reached their watermark; False when the study is to stop."""
    buffer = server.buffer
    is_ready = False

    def attempt(timeout: float) -> bool:
        nonlocal is_ready
        is_ready = is_ready or buffer.native.wait_ready(timeout)
        if server.comm.any(not is_ready):
            raise WaitTimeout("not every rank has reached its watermark")
        return True

    wait = PolledWait(server._ending, server._describe_study)
    is_over = wait.result_of(attempt) is not None
    # A stop ends reception, and so the wait for samples.
    if not is_over or server._ending.check():
        return False
    population, watermark = len(buffer), server._progress.watermark
    if buffer.native.closed and population < watermark:
        logger.warning(
            f"reception is over and the buffer holds {population} samples, so that its watermark of "
            f"{watermark} cannot be reached: training starts with what is there"
        )
    return True
