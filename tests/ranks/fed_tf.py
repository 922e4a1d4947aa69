"""Servers of TensorFlow on several ranks, whose samples a test makes."""

import contextlib
import json
import os
import socket

from feeding import SIZE, Feeding, configuration, train

from melissa.server.deep_learning.tf_ranks import tensorflow_ranks

__all__ = ["SIZE", "connect", "loss_of", "network", "server_class", "train", "weights"]

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"


def connect(comm):
    """Do what melissa-server does before it imports the study's file; somebody else wants its port."""
    from melissa.launcher.defaults import merge_defaults

    allgather = comm.allgather

    def allgather_beside_others(value):
        if isinstance(value, str):
            port = int(value.rpartition(":")[2])
            for options in ({}, {"family": socket.AF_INET6, "dualstack_ipv6": True}):
                with contextlib.suppress(OSError), socket.create_server(("", port), **options):
                    raise AssertionError(f"port {port} is free for anybody")
        return allgather(value)

    comm.allgather = allgather_beside_others
    config = configuration()
    merge_defaults(config)
    return tensorflow_ranks(comm, config)


def network():
    """A small network, the same each time."""
    import keras

    first, second = (keras.initializers.GlorotUniform(seed) for seed in (3, 4))
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(16, activation="tanh", kernel_initializer=first),
            keras.layers.Dense(SIZE, kernel_initializer=second),
        ]
    )


def loss_of(model, inputs, fields):
    import tensorflow as tf

    return tf.reduce_mean(tf.square(model(inputs, training=True) - fields))


def server_class():
    """Return a class to derive from: TensorFlow's ranks must be connected before."""
    import keras
    import tensorflow as tf

    from melissa.server.deep_learning.tf_server import TFServer

    class Eager(Feeding, TFServer):
        def prepare_training_attributes(self):
            return network(), keras.optimizers.Adam(0.01)

        def training_step(self, batch, batch_idx):
            inputs, fields = batch
            return self.learn(inputs, fields)

        def learn(self, inputs, fields):
            with tf.GradientTape() as tape:
                loss = loss_of(self.model, inputs, fields)
            gradients = tape.gradient(loss, self.model.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))
            return loss

    return Eager


def weights(server):
    """The model's weights as text, for exact comparison."""
    return json.dumps([variable.numpy().tolist() for variable in server.model.trainable_variables])
