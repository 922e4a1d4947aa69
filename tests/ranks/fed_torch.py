"""Servers of torch on several ranks, whose samples a test makes: no launcher, no client, no socket.

A program defines a class on top of `Fed` and calls `train`; what it tells with `say` its test reads.
"""

import json

import torch
from feeding import BATCH, SIZE, Accounting, Feeding, sample, train

from melissa.server.deep_learning.torch_server import TorchServer

__all__ = ["BATCH", "Accounting", "Fed", "network", "sample", "train", "weights"]


def network(batch_norm=False):
    """A small network, the same each time."""
    torch.manual_seed(3)
    layers = [torch.nn.Linear(3, 16)]
    if batch_norm:
        layers.append(torch.nn.BatchNorm1d(16))
    return torch.nn.Sequential(*layers, torch.nn.Tanh(), torch.nn.Linear(16, SIZE))


class Fed(Feeding, TorchServer):
    """A server that is fed."""

    def prepare_training_attributes(self):
        model = network()
        return model, torch.optim.Adam(model.parameters(), lr=0.01)

    def training_step(self, batch, batch_idx):
        inputs, fields = self.to_device(batch)
        self.optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(self.model(inputs), fields)
        loss.backward()
        self.optimizer.step()
        return loss


def weights(server):
    """The model's weights and buffers as text, for exact comparison."""
    state = server.unwrapped_model.state_dict()
    return json.dumps({name: value.tolist() for name, value in state.items()})
