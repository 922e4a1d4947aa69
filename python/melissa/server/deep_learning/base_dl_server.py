"""The server that trains: `DeepMelissaServer`, agnostic of frameworks.

Here is what study code reads, sets, calls and overrides. How a study goes on stands beside it: `course`,
`preparation`, `reception`, `watermark`, `training_loop`, `checkpointing`, `finalizing`.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from melissa._melissa import Batch, Receiver
from melissa.exceptions import TrainingError, UnsupportedConfiguration
from melissa.launcher.schema import buffer_kind
from melissa.server.base_server import BaseServer
from melissa.server.checkpoint.writing import CheckpointWriter
from melissa.server.deep_learning.accounting import TrainedAccounting
from melissa.server.deep_learning.batch_source import make_batch_source
from melissa.server.deep_learning.checkpointing import BatchesAhead, restart, write_state
from melissa.server.deep_learning.course import run_study, train_study
from melissa.server.deep_learning.dataset import MelissaIterableDataset, make_dataset
from melissa.server.deep_learning.expectations import Expectations, expectations_of
from melissa.server.deep_learning.fast_dev_run import fast_dev_run
from melissa.server.deep_learning.finalizing import Finalization, finalize
from melissa.server.deep_learning.finite_loss import LossCheck
from melissa.server.deep_learning.flags import BatchFlags
from melissa.server.deep_learning.frameworks import FrameworkType
from melissa.server.deep_learning.hooks import is_overridden, train_takes_model
from melissa.server.deep_learning.lanes import BatchSource, Delivery, SampleChecks
from melissa.server.deep_learning.monitoring import ExperimentalMonitoringMixin
from melissa.server.deep_learning.preparation import (
    check_drain,
    check_group_size,
    make_model,
    training_section,
)
from melissa.server.deep_learning.rank_zero import rank_zero_only
from melissa.server.deep_learning.reception import begin_reception, make_study_buffer
from melissa.server.deep_learning.reservoir import BaseQueue, BufferType
from melissa.server.deep_learning.sample_source import PolledWait
from melissa.server.deep_learning.tensorboard import TensorboardLogger, make_tb_logger
from melissa.server.deep_learning.train_workflow import TrainingWorkflowMixin
from melissa.server.deep_learning.training_loop import run_training, run_validation
from melissa.server.deep_learning.training_share import TrainingShare
from melissa.server.deep_learning.validation_batches import ValidationBatches
from melissa.server.deep_learning.watermark import wait_for_watermark
from melissa.server.ensemble import Ensemble
from melissa.server.link import Pinger
from melissa.server.simulation import PartialSimulationData, Simulation, SimulationData

__all__ = [
    "DeepMelissaServer",
    "ExperimentalMonitoringMixin",
    "TrainingError",
    "TrainingWorkflowMixin",
    "UnsupportedConfiguration",
    "rank_zero_only",
]

logger = logging.getLogger("melissa")


class DeepMelissaServer(BaseServer, ExperimentalMonitoringMixin, TrainingWorkflowMixin):
    """Trains a model on what simulations send, while they run.

    It manages data buffering, logging and the configuration of training. A study's class derives from it (or
    from `TorchServer`) and defines the hooks of `TrainingWorkflowMixin`, `prepare_training_attributes`, and
    one of

    - ``process_simulation_batch(batch, config_dict)``, optional, the fast lane: gets whole batches as arrays
      that the extension has gathered (`melissa._melissa.Batch`), and returns what `training_step` gets;
    - ``process_simulation_data(data, config_dict)``, the view lane: gets one `SimulationData`; what it
      returns per sample is put together to a batch.

    Where a class has both, the predefined loop uses the first.

    Parameters
    ----------
    config_dict
        A dictionary containing configuration settings; defaults of absent keys are put into it.

    Attributes
    ----------
    dl_config : dict
        Deep-learning-specific configuration: the section of that name.
    batch_size : int
        The size of batches used for training.
    per_server_watermark : int or None
        Samples that this rank's buffer must hold before training starts; FIFO needs none.
    buffer_size : int
        Samples that this rank's buffer holds at most.
    pseudo_epochs : int
        Times that a FIRO buffer delivers each sample, to replicate epoch-based training online.
    current_sample_count : int
        Number of samples received so far.
    nb_expected_batches : int or None
        Number of expected batches; fixed for FIFO and FIRO, None where it is not known.
    nb_batches_update : int
        Batches between two validations and between two logged rates.
    checkpoint_interval : int
        Batches between two checkpoints; `nb_batches_update` unless the configuration says otherwise.
    setup_slurm_ddp : bool
        Whether ranks of data-parallel training come from Slurm's environment.
    batch_offset : int
        Batches that were trained before this start of the server.
    report_extra : dict
        What the study has to say of its model in the end: numbers and texts by name, which the launcher
        shows, and which stand in ``study_report.json`` under "validation". Set it in `on_train_end` at the
        latest.

    Values that are assigned after ``super().__init__`` (batch_size, buffer_size, per_server_watermark, ...)
    hold: the buffer, the dataset and the logger are made later, when the server comes online.
    """

    def __init__(self, config_dict: dict[str, Any]) -> None:
        BaseServer.__init__(self, config_dict)
        self.dl_config: dict[str, Any] = training_section(config_dict, type(self).__name__)
        self._framework_t = FrameworkType.DEFAULT
        self.batch_size: int = self.dl_config["batch_size"]
        self.buffer_size: int = self.dl_config["buffer_size"]
        self.per_server_watermark: int | None = self.dl_config["per_server_watermark"]
        self.pseudo_epochs: int = self.dl_config["pseudo_epochs"]
        self.nb_batches_update: int = self.dl_config["nb_batches_update"]
        self.checkpoint_interval: int = self.dl_config["checkpoint_interval"]
        self.setup_slurm_ddp: bool = self.dl_config["setup_slurm_ddp"]
        self.nb_expected_batches: int | None = None
        self.batch_offset = 0
        self._nb_validation = self.study_options["validation_sweep_size"]
        self.report_extra: dict[str, Any] = {}
        self._model: Any = None
        self._optimizer: Any = None
        self.__buffer: BaseQueue | None = None
        self.__dataset: MelissaIterableDataset | None = None
        self._valid_dataloader: Iterable[Any] | None = None
        self._has_warned_of_no_validation = False
        self._tb_logger: TensorboardLogger | None = None
        self._receiver: Receiver | None = None
        self._ensemble: Ensemble | None = None
        self._wait = PolledWait(self._ending, self._describe_study, self._progress)
        self._accounting: TrainedAccounting
        self._checks: SampleChecks | None = None
        self._has_batch = True
        self._ahead = BatchesAhead()
        self._checkpoints: CheckpointWriter | None = None
        self._share = TrainingShare()
        self._flags = BatchFlags(self.comm, self._ending, self._share)
        self._loss_check = LossCheck(self.dl_config["check_loss"])
        self._finalization = Finalization()
        self._fast_dev_run = fast_dev_run()
        self.__pinger: Pinger | None = None
        self.__start_pinger_thread()

    # What study code reads and sets.

    @property
    def model(self) -> Any:
        """The model to be trained."""
        return self._model

    @model.setter
    def model(self, model: Any) -> None:
        self._model = model

    @property
    def optimizer(self) -> Any:
        """The training optimizer."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    @property
    def buffer(self) -> BaseQueue:
        """The training buffer; it is there from the moment on that the server is online.

        `TrainingError` before that. A buffer that is set before is used as it is.
        """
        if self.__buffer is None:
            raise TrainingError(
                "there is no training buffer yet: it is made when the server comes online, after the model"
            )
        return self.__buffer

    @buffer.setter
    def buffer(self, buffer: BaseQueue) -> None:
        if not isinstance(buffer, BaseQueue):
            raise TypeError(
                f"a training buffer must be a BaseQueue (see make_buffer), not {type(buffer).__name__}"
            )
        if self._receiver is not None:
            raise TrainingError("the buffer cannot be changed while data are received into it")
        self.__buffer = buffer

    @property
    def dataset(self) -> MelissaIterableDataset:
        """The buffer as a dataset; it is there from the moment on that the server is online."""
        if self.__dataset is None:
            raise TrainingError(
                "there is no dataset yet: it is made when the server comes online, after the model"
            )
        return self.__dataset

    @dataset.setter
    def dataset(self, dataset: MelissaIterableDataset) -> None:
        self.__dataset = dataset

    @property
    def valid_dataloader(self) -> Iterable[Any] | None:
        """Batches for validation, any iterable that can be iterated repeatedly; None for no validation."""
        return self._valid_dataloader

    @valid_dataloader.setter
    def valid_dataloader(self, dataloader: Iterable[Any] | None) -> None:
        self._valid_dataloader = dataloader

    @property
    def tb_logger(self) -> TensorboardLogger:
        """The logger for TensorBoard; it is made at the first use."""
        if self._tb_logger is None:
            self._tb_logger = make_tb_logger(
                self._framework_t,
                self.rank,
                disable=not self.dl_config["tensorboard"],
                debug=self.verbose_level >= 3,
            )
            self._tb_logger.on_scalar = self._take_scalar
        return self._tb_logger

    def _take_scalar(self, tag: str, value: float) -> None:
        self._progress.scalar(tag, value)
        self._loss_check.logged(tag, value)

    @property
    def current_sample_count(self) -> int:
        """Number of samples that this rank has received so far."""
        return 0 if self._receiver is None else int(self._receiver.counters()["samples_received"])

    @property
    def progress(self) -> Any:
        """How much of training is done, from 0 at its start to 1 in `on_train_end`; it never decreases.

        For schedules of a learning rate and the like: a Reservoir's number of batches is not known. See
        `melissa.server.deep_learning.training_share.TrainingShare` for what it counts. On several ranks it
        is the same on all of them in the same batch; with `drain` "all" it stands still once the first rank
        has run dry. A class may use the name for something of its own.
        """
        if self._own_progress is not None:
            return self._own_progress
        if self.comm_size == 1:
            self._share.raise_to(self._share.here())
        return self._share.value

    @progress.setter
    def progress(self, value: Any) -> None:
        self._own_progress = value

    _own_progress: Any = None

    @property
    def num_server_proc(self) -> int:
        """Number of server ranks, by its name of 2023."""
        return self.comm_size

    @property
    def n_batches_update(self) -> int:
        """`nb_batches_update`, by its name of 2023."""
        return self.nb_batches_update

    @n_batches_update.setter
    def n_batches_update(self, nb_batches: int) -> None:
        self.nb_batches_update = nb_batches

    # From the first client to the report.

    def start(self) -> None:
        """The main entrypoint for the server events.

        Raises what failed, after it was logged and the launcher was told.
        """
        if self._is_offline:
            self._start_offline()
        else:
            run_study(self)

    def _make_model(self) -> None:
        """Have the study's class make model and optimizer: the last step of the preparation."""
        make_model(self)

    def setup_environment(self) -> None:
        """Set up what the framework needs before the model is made: nothing here."""

    def _check_group_size(self) -> None:
        """Checks if the group size was correctly set; `UnsupportedConfiguration` otherwise."""
        check_group_size(self)

    def _drain(self, source: BatchSource, delivery: Delivery | None, batch_idx: int) -> int:
        """Train what ranks have left when one is dry; return the number of batches, the same on every rank.

        Every rank calls it: `delivery` is its next batch, None where it has no more. Nothing is trained here.
        """
        return batch_idx

    _is_apart = False
    """Whether ranks train one without the others, so that their numbers of batches differ."""

    _can_drain_all = False
    """Whether this server's loop trains to the last sample of every rank (``dl_config.drain``: "all")."""

    def _check_drain(self) -> None:
        """Check that the server can drain as the configuration asks; `UnsupportedConfiguration` otherwise."""
        check_drain(self)

    def _server_online(self) -> None:
        """Initiates data collection, and directs the custom methods for acting on collected data."""
        self._ending.is_looked_at = True
        self.__set_expected_batches_samples_watermark()
        self.__configure_data_collection()
        self._restart_from_checkpoint()
        self._receive()
        if self._fast_dev_run is not None:
            self._fast_dev_run.watch(self)
        self._progress.phase = "preparing to train"
        self._on_train_start()
        if self.__check_water_mark():
            train_study(self)

    def _run_train(self) -> None:
        """Call the predefined or the user's own `train`, in the form of its generation."""
        if train_takes_model(type(self)):
            cast(Any, self).train(self._model)
        else:
            self.train()

    def _server_finalize(self, exit_: int = 0) -> None:
        """Finalizes the server operations.

        Parameters
        ----------
        exit_
            The exit status code indicating the outcome of the server's operations. Defaults to 0, which
            signifies a successful termination.
        """
        if self._is_offline:
            self.__stop_pinger_thread()
            self._finalize_offline(exit_)
            return
        with self._finalization.once() as is_due:
            if is_due:
                finalize(self, exit_)
                self.__stop_pinger_thread()
                logger.info(f"Server finalizing with status {exit_}")

    # Pings.

    def __start_pinger_thread(self) -> None:
        """Starts the pinger thread and set the flag."""
        self._is_pinging = self._link is not None and self.rank == 0
        if self._is_pinging and self.__pinger is None:
            period = min(2.0, self.config_dict["launcher_config"]["server_timeout"] / 4)
            self.__pinger = Pinger(self._needed_link(), period)
            self.__pinger.start(self.__loop_pings)

    def __loop_pings(self) -> None:
        """Maintains communication with the launcher.

        It ensures that the launcher does not assume the server has become unresponsive.
        """
        if self.__pinger is not None:
            self.__pinger.loop()

    def __stop_pinger_thread(self) -> None:
        """Stops the pinger thread and unsets the flag."""
        self._is_pinging = False
        if self.__pinger is not None:
            self.__pinger.stop()

    # Reception.

    def _buffer_t(self) -> BufferType:
        return BufferType[buffer_kind(self.dl_config["buffer"])]

    def _expectations(self) -> Expectations:
        return expectations_of(self, self.__buffer)

    @property
    def _drop_last(self) -> bool:
        return bool(self.dl_config.get("drop_last", False))

    def __set_expected_batches_samples_watermark(self) -> None:
        """Computes and sets the expected samples and batches per server process."""
        expectations = self._expectations()
        self.nb_expected_batches = expectations.batches
        self._progress.batches_expected = expectations.batches
        self._progress.watermark = expectations.watermark
        self._share.samples_expected = expectations.samples

    def __configure_data_collection(self) -> None:
        """Instantiates the data collection i.e buffer, dataset, and dataloader.

        Users must implement process_simulation_data, or process_simulation_batch. A class of 2023 does it in
        its own ``configure_data_collection``; what that leaves out is made here.
        """
        if is_overridden(type(self), "configure_data_collection"):
            cast(Any, self).configure_data_collection()
            # The user's own buffer may differ from the configuration.
            self.__set_expected_batches_samples_watermark()
        if self.__buffer is None:
            self.__buffer = make_study_buffer(self, self._buffer_t())
        self.__buffer.join_study(self._registry, self.study_options["seed"] + self.rank)
        if self.__dataset is None:
            self.__dataset = make_dataset(
                self._framework_t,
                self.__buffer,
                self.config_dict,
                self.process_simulation_data,
                self.tb_logger,
            )

    def _receive(self) -> None:
        """Handles data coming from the server object.

        Data go from the sockets to the buffer in a thread of the extension; this starts it, and the control
        thread that asks for clients.
        """
        begin_reception(self, reception_over=self.__signal_end_of_reception)

    def _simulation(self, simulation_id: int) -> Simulation:
        known = {} if self._control is None else self._control.simulations
        return known.get(simulation_id) or Simulation(simulation_id)

    def _on_control_tick(self, counters: dict[str, float]) -> None:
        """Called twice a second by the control thread, or the agent of a rank."""
        if counters.get("expected_samples", -1) >= 0:
            self._share.samples_expected = int(counters["expected_samples"])
        self._monitor_reception(counters)

    def _simulation_finished(self, simulation: Simulation) -> None:
        is_first = self.nb_time_steps == 0
        super()._simulation_finished(simulation)
        if is_first:
            # What the first simulation shows may be less than the watermark needs: reception's end lifts that
            # then.
            try:
                self.__set_expected_batches_samples_watermark()
            except UnsupportedConfiguration as problem:
                logger.warning(f"{problem}; training starts when reception is over")

    def __signal_end_of_reception(self) -> None:
        """Unsets the reception when all data has been received.

        MelissaIterableDataset stops the batch formation then: the buffer knows by itself: it drains, then its
        samplers are told of the end.
        """
        self._is_receiving = False
        logger.info(f"{len(self.buffer)} samples are in the buffer, which nothing enters any more")

    def _process_partial_data_reception(
        self, simulation: Simulation, simulation_data: PartialSimulationData
    ) -> None:
        """Partial data has to be assembled for DeepMelissaServer. Do not perform anything.

        A class that overrides it gets every field of each sample before the sample is trained the first time.
        """

    def _validate_data(self, simulation_data: SimulationData) -> bool:
        """Validates the simulation data.

        A class that overrides it gets each sample once, before it is trained the first time; a sample for
        which it returns False is not trained, and stands in the report as untrained. Samples pass one by one
        through Python then.
        """
        return True

    def _describe_study(self) -> str:
        """Say in one line where data are, for who waits for them."""
        population = 0 if self.__buffer is None else len(self.__buffer)
        text = f"the buffer holds {population} samples, the watermark is {self._progress.watermark}"
        return text if self._control is None else f"{text}; {self._control.describe()}"

    def __check_water_mark(self) -> bool:
        """Ensures there are sufficient samples to reach the per_server_watermark.

        Waits for them, on every rank; False when the study is to stop.
        """
        self._progress.phase = "waiting for the watermark"
        return wait_for_watermark(self)

    # Between ranks.

    def other_processes_finished(self, batch_idx: int) -> bool:
        """Checks if other server processes have finished emptying their buffers.

        Every rank asks after it has fetched, or could not fetch, batch `batch_idx`.

        Parameters
        ----------
        batch_idx
            The current batch number being processed.

        Returns
        -------
        Whether some rank could not fetch its batch: then all stop.
        """
        finished = self._synchronize_data_availability()
        if finished:
            logger.debug(f"training ends at batch {batch_idx}: a rank has no data left")
        return finished

    def _synchronize_data_availability(self) -> bool:
        """Coordinates the dataset data availability status across all server processes.

        Says whether at least one rank could not fetch its batch; then training stops on all ranks.
        """
        has_ended = self.comm_size > 1 and getattr(self.__dataset, "has_ended", False)
        return not self._flags.agree(self._has_batch and not has_ended)

    # Checkpoints.

    def checkpoint_state(self) -> None:
        """Checkpoint the current state of the server.

        What a restarted server goes on with: the training buffer, batches that were drawn and not yet
        trained, random states, the ledger, simulations and their parameters, counters; and, through
        `_checkpoint_model`, model and optimizer. It is written to ``checkpoints/melissa/<batch>/``
        beside training. Every rank calls it, between two batches. While one is being written, further ones
        are skipped; a second one after the same batch is none. The predefined loop calls it after
        `checkpoint`; a loop of the study's own may call it after a training step.
        """
        write_state(self)

    def _restart_from_checkpoint(self) -> None:
        """Restarts the server object from a checkpoint, where the launcher has restarted the server.

        The newest one that is whole on every rank is used; without one the study begins anew. A server that
        is started the first time removes checkpoints of an earlier study in the same folder.
        """
        self._restored = restart(self)

    def _checkpoint_model(self, folder: Path) -> None:
        """Write what a checkpoint of the whole server needs of the model into `folder`, this rank's own.

        Every rank calls it between two batches. Nothing here: only a framework's server knows how.
        """

    def _restore_model(self, folder: Path) -> None:
        """Read what `_checkpoint_model` wrote; every rank calls it, after the model was made.

        This one calls `_load_model_from_checkpoint`: a class that saves its model in `checkpoint` loads it
        there.
        """
        self._load_model_from_checkpoint()

    @abstractmethod
    def checkpoint(self, batch_idx: int, path: str = "checkpoints") -> None:
        """The method called to initiate full tree checkpointing.

        This is specific to torch or tensorflow server. A study's class may save what it likes in it: the
        state of the server is saved besides (`checkpoint_state`).
        """

    def _checkpoint(self, batch_idx: int, path: str = "checkpoints") -> None:
        """Checkpointing at specific interval. The interval defaults nb_batches_update."""
        if self.checkpoint_interval > 0 and batch_idx % self.checkpoint_interval == 0:
            self._checkpoint_now(batch_idx, path)

    def _checkpoint_now(self, batch_idx: int, path: str = "checkpoints") -> None:
        """Save the model as the class does, then the state of the server; every rank calls it."""
        with self._progress.saving():
            self.checkpoint(batch_idx, path)
            self.checkpoint_state()

    def _checkpoint_on_request(self, batch_idx: int) -> None:
        """Write the checkpoint that SIGUSR1 asked for on some rank; all ranks come here after that batch.

        While one is being written the wish stays: then they come here after the next batch, too.
        """
        if self._checkpoints is not None and self.comm.any(self._checkpoints.is_busy):
            return
        self._ending.checkpoint_wanted = False
        logger.info(f"a checkpoint is written after batch {batch_idx}, as was asked for")
        self._checkpoint_now(batch_idx)

    @abstractmethod
    def _load_model_from_checkpoint(self) -> None:
        """Library specific model loading function. This is specific to torch or tensorflow server."""

    # What a study defines.

    @abstractmethod
    def process_simulation_data(self, data: SimulationData, config_dict: dict[str, Any]) -> Any:
        """Transforms data while creating batches with MelissaIterableDataset.

        See `SimulationData` for usage of attributes associated with the received data.

        Parameters
        ----------
        data
            The data message received from the simulation (pulled from the buffer).
        config_dict
            A dictionary containing configuration settings.

        Returns
        -------
        Transformed data before creating a batch from it.
        """

    @abstractmethod
    def prepare_training_attributes(self) -> tuple[Any, Any]:
        """Required to configure server's self.model and self.optimizer attributes.

        Returns
        -------
        model
            Instantiated model object.
        optimizer
            Instantiated optimizer object.
        """

    @abstractmethod
    def _setup_environment_slurm(self) -> None:
        """Sets up the unique Distributed Data Parallel (DDP) environment using SLURM.

        As per the recommendations from Jean-Zay's documentation:
        http://www.idris.fr/eng/jean-zay/gpu/jean-zay-gpu-torch-multi-eng.html
        """

    # The predefined loops.

    _has_default_batch = False

    def _default_batch(self, batch: Batch) -> Any:
        """Make of `batch` what the training step of a class without either hook gets."""
        raise NotImplementedError

    def _adopt_batch(self, batch: Any) -> Any:
        """Give what `process_simulation_batch` has returned the form of the framework."""
        return batch

    def validation(self, batch_idx: int) -> None:
        """Predefined validation loop agnostic of frameworks."""
        run_validation(self, batch_idx)

    def _validation(self, batch_idx: int) -> None:
        """Call `validation` if it is time to: on rank 0, every ``nb_batches_update`` batches."""
        is_time = self.nb_batches_update > 0 and batch_idx % self.nb_batches_update == 0
        if is_time and self.rank == 0 and self._valid_dataloader is not None:
            if isinstance(self._valid_dataloader, ValidationBatches) and not self._valid_dataloader.look():
                logger.info(f"no sample for validation has come before batch {batch_idx}")
                return
            self.validation(batch_idx)

    def train(self) -> None:
        """Predefined training loop agnostic of frameworks."""
        run_training(self, make_batch_source(self))
