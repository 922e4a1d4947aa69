"""What a checkpoint has of a torch model: one file of model and optimizer, and random states of each rank.

Nothing in the files is code: ``torch.load(..., weights_only=True)`` reads them, also where there is no GPU.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from melissa.exceptions import CheckpointError, TrainingError
from melissa.server.deep_learning.collate import map_leaves

if TYPE_CHECKING:
    import torch

__all__ = [
    "MODEL_NAME",
    "link_or_copy",
    "load_model",
    "load_random_states",
    "on_cpu",
    "random_states",
    "random_states_name",
    "restore_random_states",
    "save",
    "save_model",
    "unwrap",
]

logger = logging.getLogger("melissa")

MODEL_NAME = "model.pt"


def random_states_name(rank: int) -> str:
    """Return the name of a rank's file of random states."""
    return f"random_states_{rank}.pt"


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a file under its name at once: a reader sees the old one or the new one, whole.

    `CheckpointError` when the disk does not take it.
    """
    import torch

    unfinished = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:
        # torch says RuntimeError where its own writer finds the disk full.
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise CheckpointError(f"{path.absolute()} cannot be written: {error}") from error


def link_or_copy(path: Path, name: Path) -> None:
    """Give a written file another name, or a copy where the file system has no links.

    `save` replaces files and never changes one, so what is linked stays what it is.
    """
    name.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)


def unwrap(model: Any) -> Any:
    """Return the model inside the wrappers of data-parallel training and of ``torch.compile``."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "module") and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            model = model.module
        else:
            return model


def on_cpu(state: Any) -> Any:
    """Return `state` with its tensors on the CPU."""
    return map_leaves(state, lambda leaf: leaf.detach().cpu() if hasattr(leaf, "detach") else leaf)


def save_model(path: Path, model: Any, optimizer: Any, batch: int, loss: Any = None) -> None:
    """Write model and optimizer after `batch` batches.

    `TrainingError` where a weight is NaN: the older file, if there is one, is worth more. `CheckpointError`
    when the disk does not take the file.
    """
    weights = on_cpu(unwrap(model).state_dict())
    _refuse_nan(unwrap(model), weights, path, batch)
    content = {
        "batch": batch,
        "loss": on_cpu(loss),
        "model_state_dict": weights,
        "optimizer_state_dict": None if optimizer is None else on_cpu(optimizer.state_dict()),
    }
    save(path, content)


def _refuse_nan(model: Any, weights: Mapping[str, Any], path: Path, batch: int) -> None:
    # Buffers may hold what they like: a mask of infinities, say.
    for name, _ in model.named_parameters():
        weight = weights.get(name)
        if weight is not None and weight.isnan().any():
            older = f"{path} of an earlier batch is kept" if path.is_file() else "no checkpoint is written"
            raise TrainingError(
                f"at batch {batch} the model's parameter {name!r} is NaN, so training has diverged; {older}. "
                "Look at the loss: a smaller learning rate, scaled inputs or clipped gradients help"
            )


def load_model(path: Path, model: Any, optimizer: Any, device: torch.device, source: Any = None) -> int:
    """Load what `save_model` wrote, from `path` or the file object `source`; return the number of batches.

    `TrainingError` when there is no such file, or when it is of another model.
    """
    import torch

    if source is None and not path.is_file():
        raise TrainingError(f"there is no checkpoint {path.absolute()}")
    content = torch.load(path if source is None else source, map_location=device, weights_only=True)
    try:
        unwrap(model).load_state_dict(content["model_state_dict"])
        if optimizer is not None and content["optimizer_state_dict"] is not None:
            optimizer.load_state_dict(content["optimizer_state_dict"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise TrainingError(
            f"the checkpoint {path.absolute()} is not of the model and the optimizer that "
            f"prepare_training_attributes returns: {error}"
        ) from error
    return int(content["batch"])


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the random states of Python, NumPy and torch, on the CPU and on `device`."""
    import torch

    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": {"version": version, "state": torch.tensor(numbers), "gauss": gauss},
        "numpy": {
            "kind": str(kind),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": None,
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def load_random_states(folder: Path, rank: int) -> dict[str, Any] | None:
    """Read the random states of a rank; None where the checkpoint has none of it."""
    import torch

    path = folder / random_states_name(rank)
    if not path.is_file():
        logger.warning(f"there is no {path}: random numbers of server rank {rank} start anew")
        return None
    states: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return states


def restore_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Go on with `states`; those of a GPU are left out where training goes on without one."""
    import torch

    python, numpy = states["python"], states["numpy"]
    random.setstate((python["version"], tuple(python["state"].tolist()), python["gauss"]))
    np.random.set_state(
        (
            numpy["kind"],
            numpy["keys"].numpy().astype(np.uint32),
            numpy["position"],
            numpy["has_gauss"],
            numpy["cached"],
        )
    )
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
