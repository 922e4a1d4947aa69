"""The server of the example: trains a network of Keras on the rods that are being simulated."""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rod import COLDEST, HOTTEST, NB_CELLS, NB_TIME_STEPS, PARAMETER_NAMES, solve

from melissa import ParameterSamplerType, TFServer, rank_zero_only

FIRST_LEARNING_RATE, LAST_LEARNING_RATE = 3e-3, 1e-4
HIDDEN = 128
NB_VALIDATION_RODS, VALIDATION_SEED = 10, 20_000
MIDDLE, SCALE = (COLDEST + HOTTEST) / 2, (HOTTEST - COLDEST) / 2  # K


def make_network() -> keras.Model:
    """Make a network, not yet trained: from three temperatures and the logarithm of time to a field.

    All are scaled to values from -1 to 1.
    """
    return keras.Sequential(
        [
            keras.Input((len(PARAMETER_NAMES) + 1,)),
            keras.layers.Dense(HIDDEN, activation="silu"),
            keras.layers.Dense(HIDDEN, activation="silu"),
            keras.layers.Dense(NB_CELLS),
        ]
    )


class RodServer(TFServer):
    """Draws temperatures, trains on what the solvers send, and says how good the surrogate is."""

    def __init__(self, config_dict: dict[str, Any]) -> None:
        """Choose how the temperatures are drawn: evenly spread over their range."""
        super().__init__(config_dict)
        self.set_parameter_sampler(ParameterSamplerType.HALTON, l_bounds=[COLDEST], u_bounds=[HOTTEST])
        self.squared_errors: list[float] = []  # of the last validation, one for each rod, in K2
        self.nb_batches = 0

    def prepare_training_attributes(self) -> tuple[keras.Model, keras.Optimizer]:
        """Make the network and its optimiser."""
        keras.utils.set_random_seed(self.study_options["seed"])
        return make_network(), keras.optimizers.Adam(FIRST_LEARNING_RATE)

    def predict(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the fields of n samples in K; the inputs are (n, 4): temperatures in K, the time step."""
        log_time = 2.0 * tf.math.log(inputs[:, 3:] + 1.0) / math.log(NB_TIME_STEPS) - 1.0
        values = tf.concat([(inputs[:, :3] - MIDDLE) / SCALE, log_time], axis=1)
        return MIDDLE + SCALE * self.model(values)

    @tf.function(reduce_retracing=True)
    def squared_error(self, inputs: tf.Tensor, fields: tf.Tensor) -> tf.Tensor:
        """Return the mean squared error of the predicted fields, in K2."""
        return tf.reduce_mean(tf.square(self.predict(inputs) - fields))

    @tf.function(reduce_retracing=True)
    def learn(self, inputs: tf.Tensor, fields: tf.Tensor) -> tf.Tensor:
        """Make one step of the optimiser; return the loss before it.

        On several ranks the gradients are averaged over them when they are applied: this code need not know.
        """
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square((self.predict(inputs) - fields) / SCALE))
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    @rank_zero_only
    def on_train_start(self) -> None:
        """Simulate rods for validation, while the first clients fill the buffer up to its watermark."""
        rng = np.random.default_rng(VALIDATION_SEED)
        steps = np.arange(NB_TIME_STEPS)[:, None]
        self.valid_dataloader = [
            (
                tf.constant(np.hstack([np.tile(rod, (NB_TIME_STEPS, 1)), steps]), tf.float32),
                tf.constant(np.array(list(solve(rod))), tf.float32),
            )
            for rod in rng.uniform(COLDEST, HOTTEST, (NB_VALIDATION_RODS, len(PARAMETER_NAMES)))
        ]

    def training_step(self, batch: tuple[tf.Tensor, tf.Tensor], batch_idx: int, **kwargs: Any) -> None:
        """Improve the network by one batch.

        Without a hook that says otherwise it is (inputs, fields): the parameters and the time step, (n, 4),
        and the temperatures, (n, cells).
        """
        # From the first learning rate to the last one, while the study progresses from 0 to 1.
        rate = FIRST_LEARNING_RATE * (LAST_LEARNING_RATE / FIRST_LEARNING_RATE) ** self.progress
        self.optimizer.learning_rate.assign(rate)
        loss = self.learn(*batch)
        self.nb_batches = batch_idx
        if batch_idx % 10 == 0:
            self.tb_logger.log_scalar("Loss/train", SCALE * math.sqrt(loss), batch_idx)  # in K

    def on_validation_start(self, batch_idx: int) -> None:
        """Forget the last validation."""
        self.squared_errors.clear()

    def validation_step(
        self, batch: tuple[tf.Tensor, tf.Tensor], valid_batch_idx: int, batch_idx: int, **kwargs: Any
    ) -> dict[str, float]:
        """Compare the prediction of one rod with what was simulated."""
        squared_error = float(self.squared_error(*batch))
        self.squared_errors.append(squared_error)
        return {"squared_error": squared_error}

    def on_validation_end(self, batch_idx: int) -> None:
        """Take note of the root mean square error over all validation rods, in K."""
        error = math.sqrt(np.mean(self.squared_errors))
        self.tb_logger.log_scalar("Loss/valid", error, batch_idx)
        # For study_report.json and for the table that the launcher prints.
        self.report_extra = {"error_K": error}

    @rank_zero_only
    def on_train_end(self) -> None:
        """Validate and save the final network."""
        self.validation(self.nb_batches)
        self.model.save("surrogate.keras")
