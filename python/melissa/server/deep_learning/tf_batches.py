"""Batches as tensors of TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from melissa.server.deep_learning.collate import map_leaves

__all__ = ["as_tf_tensors", "collate_tf"]

ALIGNMENT = 64
"""TensorFlow ends the process when it finds the memory of a tensor at another multiple."""


def _as_tensor(array: Any) -> Any:
    """Return a tensor of an array: over the same memory, if TensorFlow can have it so."""
    import tensorflow as tf

    is_fit = array.flags.writeable and array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0
    if is_fit and array.dtype.kind in "fiu" and array.size:
        # The tensor keeps the array alive, so its memory is not used for another batch meanwhile.
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    return tf.convert_to_tensor(array)


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return a new array that a tensor can share."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def as_tf_tensors(batch: Any) -> Any:
    """Return `batch` with tensors in the place of NumPy arrays, also in tuples, lists and dictionaries.

    The tensors share the arrays' memory where it is aligned and may be written, as that of batches is.
    """
    return map_leaves(batch, lambda leaf: _as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf)


def collate_tf(samples: Sequence[Any]) -> Any:
    """Put samples together: tuples, lists, dictionaries item by item; arrays, tensors, numbers to tensors.

    Anything else becomes a list.
    """
    first = samples[0]
    if isinstance(first, tuple | list):
        return tuple(collate_tf(values) for values in zip(*samples, strict=True))
    if isinstance(first, Mapping):
        return {key: collate_tf([sample[key] for sample in samples]) for key in first}
    import tensorflow as tf

    if tf.is_tensor(first):
        return tf.stack(samples)
    if isinstance(first, np.ndarray | np.generic):
        shape, dtype = (len(samples), *first.shape), np.result_type(*samples)
        return _as_tensor(np.stack(samples, out=_aligned(shape, dtype)))
    return tf.convert_to_tensor(samples) if isinstance(first, bool | int | float) else list(samples)
