"""The server for PyTorch."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melissa.exceptions import CheckpointError, UnsupportedConfiguration
from melissa.server.deep_learning import torch_checkpoint, torch_group
from melissa.server.deep_learning.checkpointing import outlive_the_disk
from melissa.server.deep_learning.collate import as_tensors, map_leaves
from melissa.server.deep_learning.framework_server import FrameworkServer
from melissa.server.deep_learning.frameworks import FrameworkType
from melissa.server.deep_learning.hooks import is_overridden
from melissa.server.deep_learning.lost_rank import raise_cause
from melissa.server.deep_learning.rank_zero import rank_zero_only
from melissa.server.deep_learning.torch_drain import train_apart
from melissa.server.deep_learning.torch_model import (
    check_joinable,
    is_sharded,
    prepare_model,
    size_of_weights,
    without_ddp,
    wrap_model,
)
from melissa.server.deep_learning.torch_places import Place, find_place
from melissa.utility.slurm import SlurmTask

if TYPE_CHECKING:
    import torch

    from melissa.server.deep_learning.lanes import BatchSource, Delivery

__all__ = ["TorchServer", "checkpoint"]

logger = logging.getLogger("melissa")


@rank_zero_only
def checkpoint(
    model: Any = None, optimizer: Any = None, batch: int = 0, loss: Any = None, path: str = "checkpoints"
) -> None:
    """Write model and optimizer to ``<path>/model.pt``, as studies of 2023 do in their own loops.

    Every rank calls it, rank 0 writes. The keys are ``batch``, ``loss``, ``model_state_dict``,
    ``optimizer_state_dict``; ``torch.load(..., weights_only=True)`` reads them, with or without a GPU.
    `TrainingError` when the model has a weight that is NaN: an older file stays then.
    """
    torch_checkpoint.save_model(Path(path) / torch_checkpoint.MODEL_NAME, model, optimizer, batch, loss)


class TorchServer(FrameworkServer):
    """Trains a PyTorch model, data-parallel where there are several ranks.

    A study's class defines `prepare_training_attributes` and `training_step`. Without a hook of its own for
    data, its training step gets ``(inputs, fields)``: a float32 tensor (batch, nb_parameters + 1) of the
    parameters followed by the time step, and a tensor (batch, size) of the one field, or a dictionary field
    name -> tensor of several. They are on the CPU, in pinned memory where training runs on a GPU:
    `to_device` moves them.

    On several ranks `model` is what `prepare_training_attributes` returned, moved to the device and wrapped
    in a ``DistributedDataParallel``; `unwrapped_model` is the model inside. A model that the class has
    wrapped itself stays as it is. Validation runs on rank 0 alone, and `model` is the model inside meanwhile.

    Attributes
    ----------
    device : torch.device
        Where to train: this rank's GPU, if every rank has one of its own, else the CPU. It is there from
        construction on.
    """

    PATIENCE = 2.0
    """Seconds in which the failure of another rank becomes known here, after its connections were lost."""

    MOST_DRIFT = 1e-4
    """Relative difference of the ranks' weights that unlike GPUs may make; beyond it they are warned of."""

    _can_drain_all = True

    def __init__(self, config_dict: dict[str, Any]) -> None:
        FrameworkServer.__init__(self, config_dict)
        self._framework_t = FrameworkType.TORCH
        self._device: torch.device | None = None
        self._pins_batches = False
        self._place: Place | None = None
        self._has_own_group = False
        self._batch_idx = 0
        self._saved_model = 0, Path()
        self._is_training = False
        self._states_at_start: dict[str, Any] | None = None
        if self.comm_size > 1:
            # All ranks are here; later on, one of them alone may ask for its device.
            self._place = find_place(self.comm)

    @property
    def device(self) -> torch.device:
        """Where to train."""
        if self._device is None:
            import torch

            gpu = self._own_place().gpu
            self.device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        assert self._device is not None
        return self._device

    @device.setter
    def device(self, device: torch.device | str) -> None:
        import torch

        self._device = torch.device(device)
        # Asked for at each batch, when all of torch is cold.
        self._pins_batches = self._device.type == "cuda"

    def _own_place(self) -> Place:
        if self._place is None:
            self._place = find_place(self.comm)
        return self._place

    @property
    def unwrapped_model(self) -> Any:
        """The model inside the wrappers of data-parallel training and of ``torch.compile``."""
        return torch_checkpoint.unwrap(self._model)

    def to_device(self, batch: Any) -> Any:
        """Return `batch` with its tensors on the device, also in tuples, lists and dictionaries.

        Tensors in pinned memory are copied while this thread goes on; torch waits where they are used.
        """
        return map_leaves(
            batch,
            lambda leaf: leaf.to(self.device, non_blocking=True) if hasattr(leaf, "to") else leaf,
        )

    # The ranks meet, train, and part.

    def setup_environment(self) -> None:
        """Choose the device; where there are several ranks, make their process group."""
        self._set_up(None)

    def _setup_environment_slurm(self) -> None:
        """Sets up the unique Distributed Data Parallel (DDP) environment using SLURM.

        Rank and size come from ``SLURM_PROCID`` and ``SLURM_NTASKS``, the master's address and port from the
        list of nodes and the numbers of job and step. `UnsupportedConfiguration` outside a task of Slurm, and
        where MPI counts ranks otherwise.
        """
        task = SlurmTask.of_rank(self.rank, self.comm_size)
        self._set_up((task.master_addr, task.master_port))

    def _set_up(self, master: tuple[str, int] | None) -> None:
        # Views of samples are read-only, and torch warns of each such array: tensors share memory with them
        # on purpose.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        self._leave_cores_to_others()
        self._meet(master)
        logger.info(f"training runs on {self.device}")

    def _meet(self, master: tuple[str, int] | None = None) -> None:
        """Make the process group, unless there is one rank or the study's class has made it."""
        if self.comm_size == 1 or torch_group.group_exists():
            return
        backend = torch_group.open_group(self.comm, self._own_place(), self.device, master)
        self._has_own_group = True
        logger.info(f"{self.comm_size} server ranks train together through {backend}")

    def _leave_cores_to_others(self) -> None:
        """Train on the cores that solvers and other ranks leave, when they share this rank's.

        Threads of torch that wait for each other spin; where others use the same cores that makes a training
        step ten times as long. A user's OMP_NUM_THREADS, or a later ``torch.set_num_threads``, counts more.
        """
        import torch

        is_shared = self.config_dict["launcher_config"]["scheduler"] == "local"
        nb_sharing = self._own_place().nb_sharing
        if (not is_shared and nb_sharing == 1) or "OMP_NUM_THREADS" in os.environ:
            return
        cores = len(os.sched_getaffinity(0))
        solvers = min(self._job_limit - 1, self.nb_simulations) if is_shared else 0
        threads = min(torch.get_num_threads(), max(1, (cores - solvers) // nb_sharing))
        torch.set_num_threads(threads)
        others = [f"up to {solvers} solvers"] if solvers else []
        others += [f"{nb_sharing - 1} server rank(s)"] if nb_sharing > 1 else []
        logger.info(f"torch uses {threads} of {cores} cores, since {' and '.join(others)} run beside it")

    def _make_model(self) -> None:
        FrameworkServer._make_model(self)
        if self._model is None:
            return
        prepare_model(self._model, self._optimizer, self.device)
        if self.comm_size > 1:
            self._meet()
            self._model = wrap_model(self._model, self.device)
        if is_sharded(self._model):
            self._check_saves_shards()
        if self._drains_all:
            check_joinable(self._model)

    def _check_saves_shards(self) -> None:
        """Check that the class saves a sharded model by itself; `UnsupportedConfiguration` otherwise."""
        name = type(self).__name__
        sharded = f"the model is sharded ({type(self._model).__name__}), so no rank has all of its weights: "
        if not is_overridden(type(self), "checkpoint"):
            raise UnsupportedConfiguration(f"{sharded}{name} needs a checkpoint(batch_idx, path) of its own")
        hooks = ("_checkpoint_model", "_restore_model")
        missing = " and ".join(f"{hook}(folder)" for hook in hooks if not is_overridden(type(self), hook))
        if self.checkpoint_interval > 0 and missing:
            raise UnsupportedConfiguration(
                f"{sharded}for checkpoints of the whole server {name} needs {missing} of its own, which "
                "every rank calls to save and to load its shards (see docs/training-on-ranks.md); or set "
                "self.checkpoint_interval = 0 in __init__ and go without"
            )

    def _check_drain(self) -> None:
        FrameworkServer._check_drain(self)
        if self._drains_all and is_overridden(type(self), "train"):
            raise UnsupportedConfiguration(
                f'dl_config.drain is "all", but {type(self).__name__} has a train of its own, which drains '
                'as it likes: set drain to "first"'
            )

    @property
    def _drains_all(self) -> bool:
        return self.comm_size > 1 and bool(self.dl_config["drain"] == "all")

    def train(self) -> None:
        """Predefined training loop; with ``dl_config.drain`` "all" every rank trains to its last sample."""
        FrameworkServer.train(self)
        self._compare_ranks()

    def _drain(self, source: BatchSource, delivery: Delivery | None, batch_idx: int) -> int:
        """Train to the last sample of every rank, if the configuration says so."""
        if not self._drains_all or self.comm.any(self._ending.stop_reason is not None):
            return batch_idx
        # From now on ranks may have different numbers of batches.
        self._is_apart = True
        return train_apart(self, source, delivery, batch_idx)

    def _compare_ranks(self) -> None:
        """Warn when the ranks have not trained the same model."""
        sizes = self.comm.allgather(size_of_weights(self._model)) if self.comm_size > 1 else []
        known = [size for size in sizes if size is not None]
        if self.rank == 0 and known and max(known) - min(known) > self.MOST_DRIFT * max(known):
            logger.warning(
                f"the weights of the server's ranks differ (sums of their sizes: {known}): something has "
                "changed them that was not the same on all ranks, a learning rate that follows figures of "
                "one rank for instance, or the model is in no wrapper of data-parallel training"
            )

    def _run_train(self) -> None:
        self._is_training = True
        self.device  # noqa: B018  # chosen now, if nobody has asked for it
        if self._states_at_start is not None:
            # Not earlier: making models and validation data has drawn from the generators meanwhile.
            torch_checkpoint.restore_random_states(self._states_at_start, self.device)
            self._states_at_start = None
        try:
            FrameworkServer._run_train(self)
        except RuntimeError as error:
            if self.comm_size > 1 and torch_group.says_peer_lost(error):
                raise_cause(error, self._ending, self.rank, self.PATIENCE)
            raise

    def _training_step(self, batch: Any, batch_idx: int, **kwargs: Any) -> Any:
        """Call `training_step`, with the batch in pinned memory where training runs on a GPU."""
        result = FrameworkServer._training_step(self, self._pin(batch), batch_idx, **kwargs)
        self._batch_idx = batch_idx
        return result

    def validation(self, batch_idx: int) -> None:
        """Predefined validation loop, on the model inside the wrapper of data-parallel training."""
        with self._alone():
            FrameworkServer.validation(self, batch_idx)

    def _validation(self, batch_idx: int) -> None:
        """Call `validation` if it is time to; the other ranks wait for it here."""
        if self.nb_batches_update <= 0 or batch_idx % self.nb_batches_update:
            return
        with self._alone():
            FrameworkServer._validation(self, batch_idx)
        if not self._is_apart:
            # Here a failure or a stop is noticed, in the next gradients' all-reduce it is not.
            self.comm.barrier()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Have in `model` what one rank can use while the others do something else."""
        wrapped, inner = self._model, without_ddp(self._model)
        self._model = inner
        try:
            yield
        finally:
            if self._model is inner:
                self._model = wrapped

    def _server_finalize(self, exit_: int = 0) -> None:
        """Finalizes the server operations; ranks part here, unless training has failed."""
        FrameworkServer._server_finalize(self, exit_)
        if self._has_own_group and exit_ != 1:
            torch_group.close_group()
        self._has_own_group = False

    # What training steps get.

    def _adopt_batch(self, batch: Any) -> Any:
        return as_tensors(batch)

    def _pin(self, batch: Any) -> Any:
        """Return `batch` in memory that a GPU reads by itself, in the place of tensors that it cannot."""
        if not self._pins_batches:
            return batch
        return map_leaves(
            batch,
            lambda leaf: leaf.pin_memory() if hasattr(leaf, "pin_memory") and not leaf.is_cuda else leaf,
        )

    # Checkpoints.

    def checkpoint(self, batch_idx: int, path: str = "checkpoints") -> None:
        """Write model and optimizer to ``<path>/model.pt``, on rank 0, in place of an older one.

        ``torch.load(..., weights_only=True)`` reads it, with or without a GPU: a dictionary with ``batch``,
        ``model_state_dict``, ``optimizer_state_dict`` and ``loss`` (None). Every rank writes its random
        states beside it. `TrainingError` when the model has a weight that is NaN; a
        disk that fails is an error in the log.
        """
        if self._model is not None:
            with outlive_the_disk(batch_idx):
                self._write_checkpoint(Path(path), batch_idx)

    def _write_checkpoint(self, folder: Path, batch_idx: int) -> None:
        if self.rank == 0:
            file = folder / torch_checkpoint.MODEL_NAME
            torch_checkpoint.save_model(file, self._model, self._optimizer, batch_idx)
            self._saved_model = batch_idx, file
        self._write_random_states(folder)

    def _write_random_states(self, folder: Path) -> None:
        states = torch_checkpoint.random_states(self.device)
        torch_checkpoint.save(folder / torch_checkpoint.random_states_name(self.rank), states)

    def _load_model_from_checkpoint(self, path: str = "checkpoints") -> None:
        """Load what `checkpoint` wrote into the model and the optimizer, on this server's device.

        `batch_offset` becomes the number of batches trained. Random states go on where they were, from the
        start of training on. `TrainingError` when there is no checkpoint.
        """
        file = Path(path) / torch_checkpoint.MODEL_NAME
        self.batch_offset = torch_checkpoint.load_model(file, self._model, self._optimizer, self.device)
        self._load_random_states(Path(path))

    def _load_random_states(self, folder: Path) -> None:
        states = torch_checkpoint.load_random_states(folder, self.rank)
        if states is not None and self._is_training:
            torch_checkpoint.restore_random_states(states, self.device)
        else:
            self._states_at_start = states

    def _checkpoint_model(self, folder: Path) -> None:
        """Write what a checkpoint of the whole server needs of the model into this rank's `folder`.

        `CheckpointError` for a sharded model: a class that has one saves it by itself.
        """
        if self._model is None:
            return
        if is_sharded(self._model):
            # To ask one rank alone for all weights would wait for the others for ever.
            raise CheckpointError(
                f"the model is sharded: {type(self).__name__} needs a _checkpoint_model(folder) and a "
                "_restore_model(folder) of its own, which save and load each rank's shards"
            )
        batch_idx, saved = self._saved_model
        if self.rank == 0 and batch_idx == self._batch_idx > 0:
            # `checkpoint` has written it after this very batch: one file may have two names.
            torch_checkpoint.link_or_copy(saved, folder / torch_checkpoint.MODEL_NAME)
            self._write_random_states(folder)
        else:
            self._write_checkpoint(folder, self._batch_idx)

    def _restore_model(self, folder: Path) -> None:
        """Read what `_checkpoint_model` wrote; every rank calls it, and rank 0 alone reads the model."""
        if self._model is None:
            return
        file = folder / torch_checkpoint.MODEL_NAME
        content = self.comm.bcast(file.read_bytes() if self.rank == 0 else None)
        self._batch_idx = torch_checkpoint.load_model(
            file, self._model, self._optimizer, self.device, io.BytesIO(content)
        )
        self._load_random_states(folder)
