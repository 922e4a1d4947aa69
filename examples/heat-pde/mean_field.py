"""What a surrogate has to beat: the mean of all fields that it was trained on."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from heat import FIELD_NAME, NB_CELLS
from torch import Tensor


class MeanField:
    """The mean of all training samples: the best prediction that knows neither temperatures nor time.

    A Reservoir delivers samples several times, and some more often than others; each counts once here.
    """

    def __init__(self, nb_cells: int = NB_CELLS) -> None:
        """Begin with no sample of a plate of `nb_cells` x `nb_cells`."""
        self.sum = np.zeros(nb_cells**2)
        self.seen: set[tuple[int, int, int]] = set()

    def add(self, batch: Any) -> None:
        """Add those samples of a batch that are new; the batch is one of `melissa._melissa.Batch`."""
        ids = np.stack([batch.simulation_ids, batch.draws, batch.time_steps], axis=1)
        for key, field in zip(map(tuple, ids.tolist()), batch.fields[FIELD_NAME], strict=True):
            if key not in self.seen:
                self.seen.add(key)
                self.sum += field

    def error(self, validation: Iterable[tuple[Any, Tensor]]) -> float:
        """Return its root mean square error over (inputs, fields) of a validation set, in K."""
        mean = torch.from_numpy(self.sum / len(self.seen))
        return math.sqrt(np.mean([torch.mean((fields - mean) ** 2).item() for _, fields in validation]))
