"""A rank whose exchange of gradients failed because another one has ended."""

from __future__ import annotations

import time
from typing import NoReturn

from melissa.exceptions import TrainingError
from melissa.server.ending import StudyEnding

__all__ = ["raise_cause"]


def raise_cause(error: Exception, ending: StudyEnding, rank: int, patience: float) -> NoReturn:
    """Raise what has failed elsewhere; `error`, in a collective call of the framework, is but its echo.

    What is not known after `patience` seconds is told as the loss of a rank: `TrainingError`.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        ending.check()
        time.sleep(0.05)
    raise TrainingError(
        f"server rank {rank} has lost the connection to another server rank while they exchanged gradients: "
        f"that rank has ended, its log says why ({error})"
    ) from error
