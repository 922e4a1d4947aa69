"""Single samples put together to what a whole batch of the extension looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from melissa._melissa import Sample

__all__ = ["SampleArrays"]


class SampleArrays:
    """A batch with the attributes of `melissa._melissa.Batch`, copied from samples.

    Attributes
    ----------
    inputs
        (samples, parameters + 1): the parameters, then the time step; float64 if a field is, else float32.
    parameters
        (samples, parameters): a view of the inputs without their last column.
    simulation_ids, draws, time_steps
        int64, one per sample.
    fields
        Field name -> (samples, size), in the order of the study.
    """

    def __init__(self, samples: Sequence[Sample], field_names: Sequence[str]) -> None:
        columns = zip(*(sample.fields for sample in samples), strict=True)
        self.fields: dict[str, NDArray[Any]] = {
            name: np.stack(column) for name, column in zip(field_names, columns, strict=True)
        }
        has_doubles = any(values.dtype == np.float64 for values in self.fields.values())
        self.inputs: NDArray[np.floating[Any]] = np.array(
            [[*sample.parameters, float(sample.time_step)] for sample in samples],
            dtype=np.float64 if has_doubles else np.float32,
        )
        self.parameters = self.inputs[:, :-1]
        self.simulation_ids = np.array([sample.simulation_id for sample in samples], dtype=np.int64)
        self.draws = np.array([sample.draw for sample in samples], dtype=np.int64)
        self.time_steps = np.array([sample.time_step for sample in samples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.inputs)
