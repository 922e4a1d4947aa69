"""Seeing that training has diverged: a loss that is no number ends the study."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from melissa.exceptions import TrainingError

__all__ = ["LossCheck"]


class LossCheck:
    """Raises `TrainingError` for a loss that is NaN or infinite.

    Looked at are scalars that are logged under a tag with "loss" in it, and what `training_step` returns: a
    number, a tensor with one element, or a dictionary with one of these under "loss".
    """

    def __init__(self, is_on: bool = True) -> None:
        self._is_on = is_on

    def logged(self, tag: str, value: float) -> None:
        """Look at a scalar that is logged."""
        if self._is_on and not math.isfinite(value) and "loss" in tag.lower():
            raise TrainingError(_text(f"the scalar {tag} that is logged is {value}"))

    def returned(self, result: Any, batch_idx: int, period: int) -> None:
        """Look at what the training step on batch `batch_idx` has returned.

        A tensor on a GPU is looked at every `period` batches only, for that waits for the GPU.
        """
        if result is None or not self._is_on:
            return
        loss: Any = result.get("loss") if isinstance(result, Mapping) else result
        if hasattr(loss, "detach"):
            if loss.numel() != 1 or (loss.device.type != "cpu" and batch_idx % max(1, period)):
                return
            loss = loss.detach().item()
        elif hasattr(loss, "numpy"):
            is_late = "GPU" in loss.device and batch_idx % max(1, period)
            loss = None if is_late or loss.shape.num_elements() != 1 else loss.numpy().item()
        if isinstance(loss, Real) and not math.isfinite(loss):
            raise TrainingError(_text(f"training_step returned a loss of {loss} at batch {batch_idx}"))


def _text(what: str) -> str:
    return (
        f"{what}: training has diverged. A smaller learning rate, scaled inputs or clipped gradients help; "
        "dl_config.check_loss false lets a study go on nevertheless"
    )
