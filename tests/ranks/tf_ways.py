"""The ways to train with TensorFlow that studies take: each class trains the model of one rank."""

import json

import keras
import numpy as np
import tensorflow as tf
from fed_tf import SIZE, loss_of, network, server_class

from melissa.server.deep_learning import tf_checkpoint

Eager = server_class()


class Graph(Eager):
    """Calls a graph from its training step."""

    @tf.function
    def learn(self, inputs, fields):
        return Eager.learn(self, inputs, fields)


class WholeStepInGraph(Eager):
    @tf.function
    def training_step(self, batch, batch_idx):
        return self.learn(*batch)


class Clipped(Eager):
    """Clips the averaged gradients by their norm, which is not the average of clipped ones."""

    def prepare_training_attributes(self):
        return network(), keras.optimizers.SGD(0.1, global_clipnorm=0.05)


class ScaledLoss(Eager):
    def prepare_training_attributes(self):
        return network(), keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))

    def learn(self, inputs, fields):
        with tf.GradientTape() as tape:
            loss = self.optimizer.scale_loss(loss_of(self.model, inputs, fields))
        gradients = tape.gradient(loss, self.model.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))


class Compiled(Eager):
    """Leaves the step to Keras."""

    def prepare_training_attributes(self):
        model, optimizer = Eager.prepare_training_attributes(self)
        model.compile(optimizer=optimizer, loss="mse")
        return model, optimizer

    def training_step(self, batch, batch_idx):
        return self.model.train_on_batch(*batch)


class WithoutOptimizer(Eager):
    def learn(self, inputs, fields):
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            loss = loss_of(self.model, inputs, fields)
        gradients = self.average_gradients(tape.gradient(loss, variables))
        for gradient, variable in zip(gradients, variables, strict=True):
            variable.assign_sub(0.1 * gradient)


class InScope(Eager):
    """Makes model and optimizer in the strategy's scope, as TensorFlow's guide has it."""

    def prepare_training_attributes(self):
        with self.strategy.scope():
            return Eager.prepare_training_attributes(self)


class InScopeAndGraph(InScope):
    @tf.function
    def learn(self, inputs, fields):
        return Eager.learn(self, inputs, fields)


class OwnRun(InScope):
    """Runs its step in the strategy itself: there gradients are summed."""

    @tf.function
    def learn(self, inputs, fields):
        self.strategy.run(self.step, args=(inputs, fields))

    def step(self, inputs, fields):
        with tf.GradientTape() as tape:
            loss = loss_of(self.model, inputs, fields) / self.comm_size
        gradients = tape.gradient(loss, self.model.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))


WAYS = [
    Eager,
    Graph,
    WholeStepInGraph,
    Clipped,
    ScaledLoss,
    Compiled,
    WithoutOptimizer,
    InScope,
    InScopeAndGraph,
    OwnRun,
]


class BuiltWhenCalled(Eager):
    """Has weights from its first batch on."""

    def prepare_training_attributes(self):
        model = keras.Sequential([keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(SIZE)])
        return model, keras.optimizers.Adam(0.01)


class BuiltDifferently(Eager):
    """Begins with other weights on each rank, which the server makes those of rank 0."""

    def prepare_training_attributes(self):
        model, optimizer = Eager.prepare_training_attributes(self)
        for variable in model.trainable_variables:
            variable.assign_add(tf.fill(variable.shape, float(self.rank)))
        return model, optimizer


class Diverging(Eager):
    """Applies gradients by an optimizer that the server does not know of."""

    def prepare_training_attributes(self):
        self.own = keras.optimizers.Adam(0.01)
        return network(), None

    def learn(self, inputs, fields):
        with tf.GradientTape() as tape:
            loss = loss_of(self.model, inputs, fields)
        gradients = tape.gradient(loss, self.model.trainable_variables)
        self.own.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))


class Validating(Eager):
    """Makes and reads a metric of Keras on rank 0 alone."""

    validated = ()

    def on_train_start(self):
        self.valid_dataloader = [(np.ones((2, 3), np.float32), np.ones((2, SIZE), np.float32))] * 2

    def on_validation_start(self, batch_idx):
        self.mean = keras.metrics.Mean()

    def validation_step(self, batch, valid_batch_idx, batch_idx):
        inputs, fields = batch
        self.mean.update_state(tf.square(self.model(inputs) - fields))
        return {}

    def on_validation_end(self, batch_idx):
        assert np.isfinite(float(self.mean.result()))
        self.validated = (*self.validated, batch_idx)


class Checkpointing(Eager):
    """Has what is each rank's own: moving means, seeds of dropout, random numbers without a seed."""

    def prepare_training_attributes(self):
        model = keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(16, activation="tanh"),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.3),
                keras.layers.Dense(SIZE),
            ]
        )
        return model, keras.optimizers.Adam(0.01)

    def training_step(self, batch, batch_idx):
        _random_numbers()
        return Eager.training_step(self, batch, batch_idx)


class Restored(Checkpointing):
    """Goes on with what a `Checkpointing` has left behind."""

    def on_train_start(self):
        self._load_model_from_checkpoint()


def _random_numbers():
    return [np.random.uniform(), float(keras.random.uniform(()))]


def state(server):
    """All variables as text, and the next random numbers."""
    variables = tf_checkpoint.model_variables(server.model)
    variables += tf_checkpoint.optimizer_variables(server.optimizer)
    return json.dumps([[variable.numpy().tolist() for variable in variables], _random_numbers()])
