"""What the extension's threads have to say, for the log."""

from __future__ import annotations

import logging

from melissa._melissa import take_log

__all__ = ["forward_extension_log"]

logger = logging.getLogger("melissa")


def forward_extension_log() -> None:
    """Log what the extension's threads have written since the last call; none of them waits for Python."""
    for level, text in take_log():
        logger.log(level, text)
