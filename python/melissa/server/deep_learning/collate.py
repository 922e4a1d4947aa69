"""Putting processed samples together to a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from melissa.server.deep_learning.frameworks import FrameworkType

if TYPE_CHECKING:
    from melissa._melissa import Batch
    from melissa.server.simulation import SimulationData

__all__ = [
    "as_tensors",
    "collate",
    "collate_arrays",
    "inputs_and_fields",
    "inputs_and_fields_of_sample",
    "map_leaves",
]


def collate(samples: Sequence[Any], framework_t: FrameworkType) -> Any:
    """Put what `process_simulation_data` returned for each sample together, in the form of a framework."""
    if framework_t is FrameworkType.TORCH:
        from torch.utils.data import default_collate

        return default_collate(list(samples))
    if framework_t is FrameworkType.TENSORFLOW:
        from melissa.server.deep_learning.tf_batches import collate_tf

        return collate_tf(samples)
    return collate_arrays(samples)


def collate_arrays(samples: Sequence[Any]) -> Any:
    """Put samples together without a framework.

    Samples that are tuples or lists give a tuple in their order, dictionaries a dictionary: arrays are
    stacked along a new first axis, other values become a list.
    """
    first = samples[0]
    if isinstance(first, tuple | list):
        return tuple(_collate_values(values) for values in zip(*samples, strict=True))
    if isinstance(first, Mapping):
        return {key: _collate_values([sample[key] for sample in samples]) for key in first}
    return _collate_values(samples)


def _collate_values(values: Sequence[Any]) -> Any:
    if all(getattr(value, "shape", ()) for value in values):
        return np.stack(values)
    return list(values)


def as_tensors(batch: Any) -> Any:
    """Return `batch` with torch tensors in the place of NumPy arrays, also in tuples, lists and dictionaries.

    The tensors share the arrays' memory.
    """
    import torch

    if type(batch) is tuple and all(type(leaf) is np.ndarray for leaf in batch):
        # What most batches are. After each training step all of this is cold, so that calls count.
        return tuple([torch.from_numpy(leaf) for leaf in batch])
    return map_leaves(batch, lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf)


def map_leaves(batch: Any, change: Callable[[Any], Any]) -> Any:
    """Return `batch` with `change` of everything in it that is no tuple, list or dictionary."""
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_leaves(value, change) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(map_leaves(value, change) for value in batch)
    if isinstance(batch, dict):
        return {key: map_leaves(value, change) for key, value in batch.items()}
    return change(batch)


def inputs_and_fields_of_sample(data: SimulationData, nb_parameters: int) -> tuple[Any, Any]:
    """Return of one sample what batches have where the hooks of a class do not say otherwise.

    A float32 array of the parameters followed by the time step; the one field, or a dictionary of several.
    """
    parameters = data.parameters[-nb_parameters or len(data.parameters) :]
    return np.array([*parameters, data.time_step], np.float32), _one_or_all(data.data)


def inputs_and_fields(batch: Batch) -> tuple[Any, Any]:
    """Return the same of a batch that was gathered by the extension."""
    return batch.inputs, _one_or_all(batch.fields)


def _one_or_all(fields: Mapping[str, Any]) -> Any:
    if len(fields) > 1:
        return dict(fields)
    (only,) = fields.values()
    return only
