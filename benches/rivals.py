"""Buffers of samples as others have them, each with a ``put(sample)`` and a ``draw()`` that returns a batch.

Samples are float32 arrays of one size. A put copies the sample, as a receiver's does; a draw copies it into a
batch.
"""

import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

__all__ = ["OPTIONAL", "CpprbBuffer", "ListReservoir", "NumpyRing", "TorchrlBuffer"]


class NumpyRing:
    """The bound: a ring without any lock, policy or id, whose draws know their places beforehand."""

    def __init__(self, capacity: int, size: int, batch_size: int, nb_draws: int) -> None:
        self._ring = np.ones((capacity, size), np.float32)
        self._batch = np.empty((batch_size, size), np.float32)
        self._places = np.random.default_rng(0).integers(0, capacity, (nb_draws, batch_size))
        self._next_put = self._next_draw = 0

    def put(self, sample: np.ndarray) -> None:
        self._ring[self._next_put % len(self._ring)] = sample
        self._next_put += 1

    def draw(self) -> np.ndarray:
        places = self._places[self._next_draw]
        self._next_draw += 1
        return self._ring.take(places, axis=0, out=self._batch, mode="clip")


class ListReservoir:
    """What a system in Python does: lists of arrays under a condition, and `np.stack`.

    A put waits while all samples of a full buffer are unseen, else evicts a seen one, uniformly. A draw waits
    for the watermark and takes a batch uniformly with replacement.
    """

    def __init__(self, capacity: int, watermark: int, batch_size: int) -> None:
        self._capacity = capacity
        self._watermark = watermark
        self._batch_size = batch_size
        self._seen: list[np.ndarray] = []
        self._unseen: list[np.ndarray] = []
        self._changed = threading.Condition()
        self._evictions = np.random.default_rng(1)
        self._draws = np.random.default_rng(2)

    def put(self, sample: np.ndarray) -> None:
        sample = sample.copy()
        with self._changed:
            while len(self._seen) + len(self._unseen) >= self._capacity and not self._seen:
                self._changed.wait()
            if len(self._seen) + len(self._unseen) >= self._capacity:
                self._take(self._seen, int(self._evictions.integers(len(self._seen))))
            self._unseen.append(sample)
            self._changed.notify_all()

    def draw(self) -> np.ndarray:
        with self._changed:
            while len(self._seen) + len(self._unseen) < self._watermark:
                self._changed.wait()
            samples = [self._draw_one() for _ in range(self._batch_size)]
            self._changed.notify_all()
        return np.stack(samples)

    def _draw_one(self) -> np.ndarray:
        place = int(self._draws.integers(len(self._seen) + len(self._unseen)))
        if place < len(self._seen):
            return self._seen[place]
        sample = self._take(self._unseen, place - len(self._seen))
        self._seen.append(sample)
        return sample

    @staticmethod
    def _take(samples: list[np.ndarray], place: int) -> np.ndarray:
        """Remove a sample from a list in which order does not matter."""
        samples[place], samples[-1] = samples[-1], samples[place]
        return samples.pop()


class TorchrlBuffer:
    """TorchRL's replay buffer over one preallocated tensor: a ring, drawn from with replacement."""

    def __init__(self, capacity: int, size: int, batch_size: int) -> None:
        import torch
        from tensordict import TensorDict
        from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

        self._dict, self._tensor = TensorDict, torch.from_numpy
        self._buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(capacity), batch_size=batch_size)

    def put(self, sample: np.ndarray) -> None:
        self._buffer.add(self._dict({"u": self._tensor(sample)}))

    def draw(self) -> Any:
        return self._buffer.sample()


class CpprbBuffer:
    """cpprb's replay buffer in Cython: a ring, drawn from with replacement."""

    def __init__(self, capacity: int, size: int, batch_size: int) -> None:
        from cpprb import ReplayBuffer

        self._buffer = ReplayBuffer(capacity, {"u": {"shape": size, "dtype": np.float32}})
        self._batch_size = batch_size

    def put(self, sample: np.ndarray) -> None:
        self._buffer.add(u=sample)

    def draw(self) -> Any:
        return self._buffer.sample(self._batch_size)


OPTIONAL: dict[str, Callable[[int, int, int], Any]] = {"torchrl": TorchrlBuffer, "cpprb": CpprbBuffer}
"""Those that need a package, by its name: ``OPTIONAL[name](capacity, size, batch_size)``."""


def is_installed(package: str) -> bool:
    """Say whether a package can be imported, without importing it."""
    return find_spec(package) is not None
