"""The server for PyTorch."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melissa.exceptions import TrainingError, UnsupportedConfiguration
from melissa.server.deep_learning.base_dl_server import DeepMelissaServer, rank_zero_only
from melissa.server.deep_learning.collate import as_tensors
from melissa.server.deep_learning.frameworks import FrameworkType

if TYPE_CHECKING:
    import torch

    from melissa._melissa import Batch
    from melissa.server.simulation import SimulationData

__all__ = ["TorchServer", "checkpoint"]

logger = logging.getLogger("melissa")

CHECKPOINT_NAME = "model.pt"


def _save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint under its name at once: a reader sees the old one or the new one, whole."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    with unfinished.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


@rank_zero_only
def checkpoint(
    model: Any = None, optimizer: Any = None, batch: int = 0, loss: Any = None, path: str = "checkpoints"
) -> None:
    """Write model and optimizer to ``<path>/model.pt``, as studies of 2023 do in their own loops.

    Every rank calls it, rank 0 writes. The keys are ``batch``, ``loss``, ``model_state_dict``,
    ``optimizer_state_dict``; ``torch.load(..., weights_only=True)`` reads them.
    """
    content = {
        "batch": batch,
        "loss": loss.detach().cpu() if hasattr(loss, "detach") else loss,
        "model_state_dict": _unwrap(model).state_dict(),
        "optimizer_state_dict": None if optimizer is None else optimizer.state_dict(),
    }
    _save(Path(path) / CHECKPOINT_NAME, content)


def _unwrap(model: Any) -> Any:
    """Return the model inside the wrappers of data-parallel training and of ``torch.compile``."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "module") and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            model = model.module
        else:
            return model


class TorchServer(DeepMelissaServer):
    """Trains a PyTorch model on one rank.

    A study's class defines `prepare_training_attributes` and `training_step`. Without a hook of its own for
    data, its training step gets ``(inputs, fields)``: a float32 tensor (batch, nb_parameters + 1) of the
    parameters followed by the time step, and a tensor (batch, size) of the one field, or a dictionary field
    name -> tensor of several. They are on the CPU; move them with ``.to(self.device)``.

    Attributes
    ----------
    device : torch.device
        Where to train: the GPU, if there is one, else the CPU. It is there from construction on.
    """

    _has_default_batch = True

    def __init__(self, config_dict: dict[str, Any]) -> None:
        DeepMelissaServer.__init__(self, config_dict)
        self._framework_t = FrameworkType.TORCH
        self._device: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Where to train."""
        if self._device is None:
            self._device = self._choose_device(0)
        return self._device

    @device.setter
    def device(self, device: torch.device) -> None:
        self._device = device

    @property
    def unwrapped_model(self) -> Any:
        """The model inside the wrappers of data-parallel training and of ``torch.compile``."""
        return _unwrap(self._model)

    @staticmethod
    def _choose_device(local_rank: int) -> torch.device:
        import torch

        return torch.device(f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu")

    def setup_environment(self) -> None:
        """Choose the device. `UnsupportedConfiguration` for several ranks, not in this version."""
        self._refuse_ranks(self.comm_size)
        # Views of samples are read-only, and torch warns of each such array: tensors share memory with them
        # on purpose.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        self._leave_cores_to_solvers()
        logger.info(f"training runs on {self.device}")

    def _leave_cores_to_solvers(self) -> None:
        """Train on as many cores as the solvers leave, when both share the machine.

        Threads of torch that wait for each other spin; where solvers use the same cores that makes a training
        step ten times as long. A user's OMP_NUM_THREADS, or a later ``torch.set_num_threads``, counts more.
        """
        import torch

        is_shared = self.config_dict["launcher_config"]["scheduler"] == "local"
        if not is_shared or "OMP_NUM_THREADS" in os.environ:
            return
        cores = len(os.sched_getaffinity(0))
        solvers = min(self._job_limit - 1, self.nb_simulations)
        threads = min(torch.get_num_threads(), max(1, cores - solvers))
        torch.set_num_threads(threads)
        logger.info(f"torch uses {threads} of {cores} cores, since up to {solvers} solvers run beside it")

    def _setup_environment_slurm(self) -> None:
        """Sets up the unique Distributed Data Parallel (DDP) environment using SLURM.

        The device comes from ``SLURM_LOCALID``. `UnsupportedConfiguration` outside Slurm, and for more than
        one rank.
        """
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
        missing = [name for name in names if name not in os.environ]
        if missing:
            raise UnsupportedConfiguration(
                f"dl_config.setup_slurm_ddp is true, but there is no {', no '.join(missing)} in the "
                "environment: outside a job of Slurm set it to false"
            )
        self._refuse_ranks(int(os.environ["SLURM_NTASKS"]))
        self.device = self._choose_device(int(os.environ["SLURM_LOCALID"]))
        DeepMelissaServer.setup_environment(self)

    @staticmethod
    def _refuse_ranks(nb_ranks: int) -> None:
        if nb_ranks > 1:
            raise UnsupportedConfiguration(
                f"the server has {nb_ranks} ranks: data-parallel training is not in this version, start it "
                "with one"
            )

    def prepare_training_attributes(self) -> tuple[Any, Any]:
        """Return (model, optimizer): a study's class defines it."""
        raise NotImplementedError(f"{type(self).__name__} does not define prepare_training_attributes()")

    def training_step(self, batch: Any, batch_idx: int, **kwargs: Any) -> Any:
        """Train on one batch: a study's class defines it."""
        raise NotImplementedError(f"{type(self).__name__} does not define training_step(batch, batch_idx)")

    def process_simulation_data(self, data: SimulationData, config_dict: dict[str, Any]) -> Any:
        """Return (inputs, field) of one sample, or (inputs, fields), as this class's batches have them."""
        import numpy as np

        inputs = np.array(
            [*data.parameters[-self.nb_parameters or len(data.parameters) :], data.time_step], np.float32
        )
        fields = dict(data.data)
        return inputs, next(iter(fields.values())) if len(fields) == 1 else fields

    def _default_batch(self, batch: Batch) -> Any:
        fields = as_tensors(batch.fields)
        return as_tensors(batch.inputs), next(iter(fields.values())) if len(fields) == 1 else fields

    def _adopt_batch(self, batch: Any) -> Any:
        return as_tensors(batch)

    def checkpoint(self, batch_idx: int, path: str = "checkpoints") -> None:
        """Write model and optimizer to ``<path>/model.pt``, on rank 0, in place of an older one.

        ``torch.load(..., weights_only=True)`` reads it: a dictionary with ``batch``, ``model_state_dict``,
        ``optimizer_state_dict`` and ``loss`` (None).
        """
        if self.rank == 0 and self._model is not None:
            checkpoint(model=self._model, optimizer=self._optimizer, batch=batch_idx, path=path)

    def _load_model_from_checkpoint(self, path: str = "checkpoints") -> None:
        """Load what `checkpoint` wrote into the model and the optimizer, on this server's device.

        `batch_offset` becomes the number of batches trained. `TrainingError` when there is no checkpoint.
        """
        import torch

        file = Path(path) / CHECKPOINT_NAME
        if not file.is_file():
            raise TrainingError(f"there is no checkpoint {file.absolute()}")
        content = torch.load(file, map_location=self.device, weights_only=True)
        self.unwrapped_model.load_state_dict(content["model_state_dict"])
        if self._optimizer is not None and content["optimizer_state_dict"] is not None:
            self._optimizer.load_state_dict(content["optimizer_state_dict"])
        self.batch_offset = content["batch"]
