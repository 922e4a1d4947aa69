"""The user's model on its way to data-parallel training: onto the device, and into one wrapper."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from melissa.exceptions import UnsupportedConfiguration

if TYPE_CHECKING:
    import torch

__all__ = [
    "check_joinable",
    "is_sharded",
    "is_wrapped",
    "prepare_model",
    "size_of_weights",
    "without_ddp",
    "wrap_model",
]

logger = logging.getLogger("melissa")

# By their names, so that none of the modules that define them is imported in vain.
SHARDING = {"FullyShardedDataParallel", "FSDPModule"}
WRAPPERS = SHARDING | {"DistributedDataParallel"}


def _class_names(model: Any) -> set[str]:
    return {cls.__name__ for cls in type(model).__mro__}


def is_wrapped(model: Any) -> bool:
    """Say whether `model` is in a wrapper of data-parallel training, maybe compiled on top of that."""
    return bool(_class_names(getattr(model, "_orig_mod", model)) & WRAPPERS)


def is_sharded(model: Any) -> bool:
    """Say whether each rank has a part of `model` only."""
    return bool(_class_names(getattr(model, "_orig_mod", model)) & SHARDING)


def prepare_model(model: Any, optimizer: Any, device: torch.device) -> None:
    """Move `model` and what its optimizer knows of it to `device`; a wrapped one is left where it is.

    Parameters stay the objects that they are, so the optimizer goes on with them.
    """
    import torch

    if not isinstance(model, torch.nn.Module) or is_wrapped(model):
        return
    model.to(device)
    if isinstance(optimizer, torch.optim.Optimizer) and optimizer.state:
        # Loading puts each part of the state where its parameter is now.
        optimizer.load_state_dict(optimizer.state_dict())


def wrap_model(model: Any, device: torch.device) -> Any:
    """Return `model` in a ``DistributedDataParallel``, or as it is when the study's class has wrapped it.

    All ranks begin with the weights of rank 0.
    """
    import torch
    from torch.nn.parallel import DistributedDataParallel

    if is_wrapped(model):
        logger.info(f"the model stays in the {type(model).__name__} that the study's class has put it into")
        return model
    if not isinstance(model, torch.nn.Module) or not any(p.requires_grad for p in model.parameters()):
        logger.warning(
            f"the model, a {type(model).__name__}, is no torch.nn.Module with parameters to train: to keep "
            "it equal on all server ranks is the study's own business"
        )
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def without_ddp(model: Any) -> Any:
    """Return the model to be used by one rank alone: what a ``DistributedDataParallel`` wraps, else `model`.

    A forward call of the wrapper would wait for the other ranks, where the model has buffers.
    """
    inner = getattr(model, "_orig_mod", model)
    return inner.module if "DistributedDataParallel" in _class_names(inner) else model


def size_of_weights(model: Any) -> float | None:
    """Return the sum of the sizes of all weights, to compare ranks by; None for what is no torch model."""
    import torch

    if not isinstance(model, torch.nn.Module) or is_sharded(model):
        return None
    return float(sum(parameter.detach().abs().sum(dtype=torch.float64) for parameter in model.parameters()))


def check_joinable(model: Any) -> None:
    """Raise `UnsupportedConfiguration` when ranks cannot end training with `model` one after the other."""
    import torch

    if "DistributedDataParallel" not in _class_names(model):
        raise UnsupportedConfiguration(
            'dl_config.drain is "all", which needs a model in a DistributedDataParallel of torch, but the '
            f'model is a {type(model).__name__}: set drain to "first"'
        )
    if any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules()):
        raise UnsupportedConfiguration(
            'dl_config.drain is "all", but the model has a SyncBatchNorm, for which all ranks must have '
            'batches: use BatchNorm, or set drain to "first"'
        )
