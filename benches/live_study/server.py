"""Servers that time their own training: one with a small network, one whose training step does nothing."""

import time

import numpy as np
import torch

from melissa.server.deep_learning.torch_server import TorchServer
from melissa.server.parameters import ParameterSamplerType

WARM_UP = 100
"""Batches that make what is made once: torch's kernels, TensorBoard's file."""
PART = 500
"""Batches over which a cost is averaged, for its spread."""


class TimedServer(TorchServer):
    """Notes when its training steps begin and end; the report gets what lies between them under "validation".

    That is Melissa's own cost per batch, as time and as processor time of the training thread: the one holds
    the waits for data and for a core, the other neither.
    """

    def __init__(self, config_dict):
        super().__init__(config_dict)
        self.set_parameter_sampler(ParameterSamplerType.RANDOM_UNIFORM, l_bounds=[0.0], u_bounds=[1.0])
        self.begun, self.ended = [], []

    def training_step(self, batch, batch_idx):
        self.begun.append((time.perf_counter(), time.thread_time()))
        self.learn(batch, batch_idx)
        self.ended.append((time.perf_counter(), time.thread_time()))

    def on_train_end(self):
        begun, ended = np.array(self.begun[WARM_UP:]), np.array(self.ended[WARM_UP:])
        between = begun[1:] - ended[:-1]
        parts = between[: len(between) // PART * PART].reshape(-1, PART, 2).mean(axis=1) * 1e6
        self.report_extra = {
            "steps_s": sum(end - begin for (begin, _), (end, _) in zip(self.begun, self.ended, strict=True))
        }
        for index, name in enumerate(("own_us", "own_cpu_us")):
            figures = parts[:, index]
            self.report_extra[name] = [figures.min(), float(np.median(figures)), figures.max()]


class LearningServer(TimedServer):
    """Learns the field from the parameters, by a step of an optimizer on each batch."""

    def prepare_training_attributes(self):
        size = self.config_dict["study_options"]["bench_size"]
        model = torch.nn.Sequential(
            torch.nn.Linear(self.nb_parameters + 1, 64), torch.nn.ReLU(), torch.nn.Linear(64, size)
        )
        return model, torch.optim.Adam(model.parameters())

    def learn(self, batch, batch_idx):
        inputs, field = batch
        self.optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(self.model(inputs), field)
        loss.backward()
        self.optimizer.step()


class IdleServer(TimedServer):
    """Does nothing with its batches: what is left is Melissa's own."""

    def prepare_training_attributes(self):
        return torch.nn.Linear(1, 1), None

    def learn(self, batch, batch_idx):
        pass


class LoggingServer(IdleServer):
    """Logs a loss for each batch, as studies do; the call is not counted as the training step's."""

    def on_batch_end(self, batch_idx):
        self.tb_logger.log_scalar("Loss/train", 0.5, batch_idx)
