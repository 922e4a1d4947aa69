"""The server for TensorFlow."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from melissa.exceptions import TrainingError
from melissa.server.deep_learning import tf_checkpoint
from melissa.server.deep_learning.checkpointing import outlive_the_disk
from melissa.server.deep_learning.framework_server import FrameworkServer
from melissa.server.deep_learning.frameworks import FrameworkType
from melissa.server.deep_learning.lost_rank import raise_cause
from melissa.server.deep_learning.tf_batches import as_tf_tensors
from melissa.server.deep_learning.tf_optimizer import average_gradients_of, leaves
from melissa.server.deep_learning.tf_ranks import TensorflowRanks, tensorflow_ranks
from melissa.utility.slurm import SlurmTask

__all__ = ["TFServer"]

logger = logging.getLogger("melissa")


class TFServer(FrameworkServer):
    """Trains a model of TensorFlow (Keras 3), data-parallel where there are several ranks.

    A study's class defines `prepare_training_attributes` and `training_step`. Without a hook of its own for
    data, its training step gets ``(inputs, fields)``: a float32 tensor (batch, nb_parameters + 1) of the
    parameters followed by the time step, and a tensor (batch, size) of the one field, or a dictionary field
    name -> tensor of several.

    Each rank calls `training_step` with a batch of its own, and the code is the same for one rank and for
    many. Take the mean of the loss over the batch::

        def training_step(self, batch, batch_idx, **kwargs):
            inputs, fields = batch
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self.model(inputs, training=True) - fields))
            gradients = tape.gradient(loss, self.model.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables))

    The optimizers that `prepare_training_attributes` returns **average** gradients over all ranks before they
    apply them, so that a step is one on the global batch, of ranks x ``batch_size`` samples: no loss is to be
    scaled. It may be a ``tf.function``, or call one, and ``self.model.train_on_batch`` of a model that was
    compiled with ``self.optimizer`` does the same. Gradients that are applied by other means go through
    `average_gradients` first. After the first batch the server compares the ranks' weights, and ends the
    study if they differ.

    Inside of a ``self.strategy.run`` of the study's own TensorFlow's rule holds instead: it **sums**
    gradients, so losses are divided by the number of ranks there. What is made in ``self.strategy.scope()``
    must be made on all ranks; nothing needs to be.

    All ranks begin with the weights of rank 0. Those of a model that is built when it is called first begin
    alike by their seed: where there are several ranks, ``study_options.seed`` is given to
    ``keras.utils.set_random_seed`` before `prepare_training_attributes`. Moving means (of a
    BatchNormalization, say) are each rank's own; validated and saved are those of rank 0. Validation runs on
    rank 0 alone.

    Attributes
    ----------
    strategy : tf.distribute.Strategy
        ``MultiWorkerMirroredStrategy`` over all ranks; of one rank TensorFlow's default strategy.
    device : str
        "GPU:0" or "CPU:0": this rank's GPU, if every rank has one of its own, else the CPU. No other GPU is
        visible to it.
    """

    PATIENCE = 2.0
    """Seconds for another rank's failure to be told here, once its echo was heard."""

    def __init__(self, config_dict: dict[str, Any]) -> None:
        FrameworkServer.__init__(self, config_dict)
        self._framework_t = FrameworkType.TENSORFLOW
        # melissa-server has done it before, unless the class is used without it.
        self._tf_ranks: TensorflowRanks = tensorflow_ranks(self.comm, config_dict)
        self._batch_idx = 0
        self._is_compared = False
        self._is_training = False
        self._states_at_start: Path | None = None

    @property
    def strategy(self) -> Any:
        """TensorFlow's strategy over the server's ranks."""
        return self._tf_ranks.strategy

    @property
    def device(self) -> str:
        """Where to train."""
        return self._tf_ranks.device

    def average_gradients(self, gradients: Any) -> list[Any]:
        """Return the means of gradients over all ranks: for those that no optimizer of this server applies.

        Every rank calls it. Inside of a ``strategy.run`` it is no use: there TensorFlow sums.
        """
        return self._tf_ranks.average(gradients)

    # The ranks meet and train.

    def setup_environment(self) -> None:
        """Set up nothing more: TensorFlow's ranks were connected before it was used."""

    def _setup_environment_slurm(self) -> None:
        """Sets up data-parallel training using SLURM.

        The ranks were connected before; here it is checked that they are Slurm's tasks.
        `UnsupportedConfiguration` outside a task of Slurm, and where MPI counts ranks otherwise.
        """
        SlurmTask.of_rank(self.rank, self.comm_size)

    def _make_model(self) -> None:
        if self.comm_size > 1:
            import keras

            keras.utils.set_random_seed(self.study_options["seed"])
        FrameworkServer._make_model(self)
        if self.comm_size > 1:
            self._tf_ranks.share(tf_checkpoint.model_variables(self._model))
            for optimizer in leaves(self._optimizer):
                self._make_average(optimizer)

    def _make_average(self, optimizer: Any) -> None:
        import keras

        if isinstance(optimizer, keras.optimizers.Optimizer):
            average_gradients_of(optimizer, self._tf_ranks)
        else:
            logger.warning(
                f"the optimizer, a {type(optimizer).__name__}, is none of Keras 3: give it gradients from "
                "self.average_gradients, or the ranks train models of their own"
            )

    def _run_train(self) -> None:
        import tensorflow as tf

        self._is_training = True
        if self._states_at_start is not None:
            # Not earlier: making validation data has drawn from the generators meanwhile.
            tf_checkpoint.load_states(self._states_at_start, self._model)
            self._states_at_start = None
        try:
            FrameworkServer._run_train(self)
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
            if self.comm_size > 1:
                raise_cause(error, self._ending, self.rank, self.PATIENCE)
            raise

    def _training_step(self, batch: Any, batch_idx: int, **kwargs: Any) -> Any:
        """Call `training_step`; after the first one compare the ranks' weights."""
        result = FrameworkServer._training_step(self, batch, batch_idx, **kwargs)
        self._batch_idx = batch_idx
        if not self._is_compared:
            self._is_compared = True
            self._compare_ranks(batch_idx)
        return result

    def _compare_ranks(self, batch_idx: int) -> None:
        differing = self._tf_ranks.differing(tf_checkpoint.trainable_variables(self._model))
        if differing:
            raise TrainingError(
                f"after batch {batch_idx} the weights of server rank(s) {', '.join(map(str, differing))} "
                "differ from those of rank 0: each trains a model of its own. Apply gradients by an "
                "optimizer that prepare_training_attributes returns, or average them before by "
                "self.average_gradients; and build the model there (keras.Input, or model.build), so that "
                "all ranks begin alike"
            )

    def _validation(self, batch_idx: int) -> None:
        """Call `validation` if it is time to; the other ranks wait for it here."""
        FrameworkServer._validation(self, batch_idx)
        if self.nb_batches_update > 0 and batch_idx % self.nb_batches_update == 0:
            # Here a failure or a stop is noticed; in the next all-reduce of gradients it is not.
            self.comm.barrier()

    # What training steps get.

    def _adopt_batch(self, batch: Any) -> Any:
        return as_tf_tensors(batch)

    # Checkpoints.

    def checkpoint(self, batch_idx: int, path: str = "checkpoints") -> None:
        """Write model and optimizer to ``<path>/model.weights.h5``, on rank 0, in place of an older one.

        ``load_weights`` of a Keras model of the same layers reads it, with or without a GPU. Every rank
        writes its random states and moving means beside it. `TrainingError` when a weight is NaN; a disk
        that fails is an error in the log.
        """
        if self._model is not None:
            with outlive_the_disk(batch_idx):
                self._write_checkpoint(Path(path), batch_idx)

    def _write_checkpoint(self, folder: Path, batch_idx: int) -> None:
        if self.rank == 0:
            file = folder / tf_checkpoint.MODEL_NAME
            tf_checkpoint.save_model(file, self._model, self._optimizer, batch_idx)
        tf_checkpoint.save_states(folder / tf_checkpoint.states_name(self.rank), self._model)

    def _load_model_from_checkpoint(self, path: str = "checkpoints") -> None:
        """Load what `checkpoint` wrote into the model and the optimizer; every rank calls it.

        `batch_offset` becomes the number of batches trained. Random states and moving means go on where they
        were, from the start of training on. `TrainingError` when there is no checkpoint.
        """
        self.batch_offset = self._load(Path(path))

    def _load(self, folder: Path) -> int:
        """Load model and optimizer on rank 0, and give all ranks the same; then what each has alone."""
        batch_idx = 0
        if self.rank == 0:
            file = folder / tf_checkpoint.MODEL_NAME
            batch_idx = tf_checkpoint.load_model(file, self._model, self._optimizer)
        if self.comm_size > 1:
            tf_checkpoint.build_optimizer(self._model, self._optimizer)
            self._tf_ranks.share(tf_checkpoint.model_variables(self._model))
            self._tf_ranks.share(tf_checkpoint.optimizer_variables(self._optimizer))
            batch_idx = self.comm.bcast(batch_idx)
        states = folder / tf_checkpoint.states_name(self.rank)
        if self._is_training:
            tf_checkpoint.load_states(states, self._model)
        else:
            self._states_at_start = states
        return batch_idx

    def _checkpoint_model(self, folder: Path) -> None:
        """Write what a checkpoint of the whole server needs of the model into this rank's `folder`."""
        if self._model is not None:
            self._write_checkpoint(folder, self._batch_idx)

    def _restore_model(self, folder: Path) -> None:
        """Read what `_checkpoint_model` wrote; every rank calls it, and rank 0 alone reads the model."""
        if self._model is not None:
            self._batch_idx = self._load(folder)
