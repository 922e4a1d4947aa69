"""What servers need whose samples a test makes: no launcher, no client, no socket."""

import os
import random

import numpy as np

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


class Feeding:
    """Goes before a server class, whose rank r of P gets samples r, r + P, ...

    So the batches that the ranks train together are those of one rank with a P times larger batch. Each rank
    gets as many batches as `nb_batches` says for it.
    """

    nb_batches = (5,)

    def draw_parameters(self):
        return [0.0, 0.0]

    def _restart_from_checkpoint(self):
        """Nothing: there is no study folder."""

    def _receive(self):
        self._accounting = Accounting()
        mine = self.nb_batches[self.rank % len(self.nb_batches)]
        for number in range(mine * self.batch_size):
            self.buffer.put(sample(number * self.comm_size + self.rank))
        self.buffer.native.close()


def train(cls, **dl_config):
    """Run a class's study on this rank; return the server, also after a failure."""
    folder = os.getcwd()
    os.environ.setdefault("MELISSA_OUTPUT_DIR", folder)
    install_link(Link())
    random.seed(1)
    server = cls(configuration(**dl_config))
    server.start()
    return server
