"""What the servers of torch and TensorFlow have in common: the batches of a class without hooks for data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from melissa.server.deep_learning.base_dl_server import DeepMelissaServer
from melissa.server.deep_learning.collate import inputs_and_fields, inputs_and_fields_of_sample

if TYPE_CHECKING:
    from melissa._melissa import Batch
    from melissa.server.simulation import SimulationData

__all__ = ["FrameworkServer"]


class FrameworkServer(DeepMelissaServer):
    """Base of the servers of frameworks.

    A study's class needs no hook for data: its training step gets ``(inputs, fields)`` then, as tensors of
    the framework. What only a study's class can define raises `NotImplementedError` when it is called: a
    class with a `train` of its own needs none of it.
    """

    _has_default_batch = True

    def prepare_training_attributes(self) -> tuple[Any, Any]:
        """Return (model, optimizer): a study's class defines it."""
        raise NotImplementedError(f"{type(self).__name__} does not define prepare_training_attributes()")

    def training_step(self, batch: Any, batch_idx: int, **kwargs: Any) -> Any:
        """Train on one batch: a study's class defines it."""
        raise NotImplementedError(f"{type(self).__name__} does not define training_step(batch, batch_idx)")

    def process_simulation_data(self, data: SimulationData, config_dict: dict[str, Any]) -> Any:
        """Return (inputs, field) of one sample, or (inputs, fields), as this class's batches have them."""
        return inputs_and_fields_of_sample(data, self.nb_parameters)

    def _default_batch(self, batch: Batch) -> Any:
        return self._adopt_batch(inputs_and_fields(batch))
