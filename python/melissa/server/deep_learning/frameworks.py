"""The deep-learning frameworks that batches can be made for."""

import enum

__all__ = ["FrameworkType"]


class FrameworkType(enum.Enum):
    """What batches are made of: NumPy arrays (DEFAULT; fit for JAX), torch tensors, TensorFlow tensors."""

    DEFAULT = 0
    TORCH = 1
    TENSORFLOW = 2
