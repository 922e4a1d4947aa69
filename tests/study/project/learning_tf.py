"""A TensorFlow server that learns the fields a little, and counts the samples that it learns from."""

import json
from collections import Counter

import keras
import numpy as np
import tensorflow as tf

from melissa.server.deep_learning.tf_server import TFServer
from melissa.server.parameters import ParameterSamplerType

# Made when this file is imported, as studies do; with the seeds of dropout comes a first operation.
LAYERS = [keras.layers.Dense(16, activation="tanh"), keras.layers.Dropout(0.1), keras.layers.Dense(12)]


class LearningServer(TFServer):
    """Takes batches as they come without any hook for data; at the end ``seen.json`` has the counts."""

    def __init__(self, config_dict):
        super().__init__(config_dict)
        self.set_parameter_sampler(ParameterSamplerType.RANDOM_UNIFORM, l_bounds=[0.0], u_bounds=[1.0])
        self.counts = Counter()

    def prepare_training_attributes(self):
        model = keras.Sequential([keras.Input((self.nb_parameters + 1,)), *LAYERS])
        return model, keras.optimizers.SGD(1e-6)

    def training_step(self, batch, batch_idx):
        inputs, fields = batch
        assert (inputs.dtype, fields.dtype) == (tf.float32, tf.float32)
        return self.learn(inputs, fields, batch_idx)

    def learn(self, inputs, fields, batch_idx):
        """Make one step of the optimizer; what the solver sent is compared first."""
        slope, time_step = inputs[:, :1], inputs[:, -1:]
        expected = slope * tf.range(1, 13, dtype=tf.float32) + 100.0 * time_step + float(sum(b"temperature"))
        np.testing.assert_allclose(fields, expected, rtol=1e-5)
        loss = self.step(inputs, fields)
        self.tb_logger.log_scalar("Loss/train", loss, batch_idx)
        self.counts.update(map(tuple, inputs.numpy().tolist()))
        return loss

    @tf.function(reduce_retracing=True)
    def step(self, inputs, fields):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.model(inputs, training=True) - fields))
        gradients = tape.gradient(loss, self.model.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))
        return loss

    def validation_step(self, batch, valid_batch_idx, batch_idx):
        inputs, fields = batch
        loss = float(tf.reduce_mean(tf.square(self.model(inputs) - fields)))
        self.tb_logger.log_scalar("Loss/valid", loss, batch_idx)
        return {"loss": loss}

    def on_train_end(self):
        weights = [variable.numpy().tolist() for variable in self.model.trainable_variables]
        seen = {"counts": sorted(self.counts.values()), "weights": weights, "device": self.device}
        with open(f"seen.{self.rank}.json", "w") as file:
            json.dump(seen, file)
