"""Servers that train a surrogate while its simulations run."""

from melissa.server.deep_learning.frameworks import FrameworkType

__all__ = ["FrameworkType"]
