"""Servers of torch on several ranks, whose samples a test makes: no launcher, no client, no socket.

A program defines a class on top of `Fed` and calls `train`; what it tells with `say` its test reads.
"""

import json
import os
import random

import numpy as np
import torch

from melissa.server.deep_learning.torch_server import TorchServer
from melissa.server.link import install_link
from melissa.server.simulation import SimulationData

SIZE = 6
BATCH = 4


class Link:
    """Takes the place of the link to the launcher."""

    failure_told = False

    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(message)

    def receive(self, timeout):
        return None

    def close(self):
        pass


class Accounting:
    """Counts what was trained."""

    nb_samples = 0

    def trained(self, what):
        self.nb_samples += len(what)

    def waited(self, seconds):
        pass


def sample(number):
    """Sample `number` of all: an input and a field that follow from it."""
    rng = np.random.default_rng(number)
    inputs = rng.uniform(-1, 1, 2)
    field = np.outer(np.sin(3 * inputs), np.ones(SIZE // 2)).ravel() + 0.1 * np.arange(SIZE)
    return SimulationData(number, 0, {"u": field.astype(np.float32)}, inputs.tolist())


def configuration(**dl_config):
    """A configuration; keywords go to ``dl_config``."""
    return {
        "study_options": {
            "field_names": ["u"],
            "parameter_sweep_size": 1000,
            "nb_parameters": 2,
            "nb_time_steps": 1,
        },
        "dl_config": {
            "batch_size": BATCH,
            "buffer_size": 500,
            "tensorboard": False,
            "nb_batches_update": 1000,
            **dl_config,
        },
        "launcher_config": {"server_timeout": 5.0},
        "client_config": {"executable_command": "true"},
    }


def network(batch_norm=False):
    """A small network, the same each time."""
    torch.manual_seed(3)
    layers = [torch.nn.Linear(3, 16)]
    if batch_norm:
        layers.append(torch.nn.BatchNorm1d(16))
    return torch.nn.Sequential(*layers, torch.nn.Tanh(), torch.nn.Linear(16, SIZE))


class Fed(TorchServer):
    """A server whose rank r of P gets samples r, r + P, ...: as many batches as `nb_batches` says for it.

    So the batches that the ranks train together are those of one rank with a P times larger batch.
    """

    nb_batches = (5,)

    def draw_parameters(self):
        return [0.0, 0.0]

    def prepare_training_attributes(self):
        model = network()
        return model, torch.optim.Adam(model.parameters(), lr=0.01)

    def _restart_from_checkpoint(self):
        """Nothing: there is no study folder."""

    def _receive(self):
        self._accounting = Accounting()
        mine = self.nb_batches[self.rank % len(self.nb_batches)]
        for number in range(mine * self.batch_size):
            self.buffer.put(sample(number * self.comm_size + self.rank))
        self.buffer.native.close()

    def training_step(self, batch, batch_idx):
        inputs, fields = self.to_device(batch)
        self.optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(self.model(inputs), fields)
        loss.backward()
        self.optimizer.step()
        return loss


def train(cls, **dl_config):
    """Run a class's study on this rank; return the server, also after a failure."""
    folder = os.getcwd()
    os.environ.setdefault("MELISSA_OUTPUT_DIR", folder)
    install_link(Link())
    random.seed(1)
    server = cls(configuration(**dl_config))
    server.start()
    return server


def weights(server):
    """The model's weights and buffers as text, for exact comparison."""
    state = server.unwrapped_model.state_dict()
    return json.dumps({name: value.tolist() for name, value in state.items()})
