"""The surrogate: a fully connected network in place of the solver."""

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

TEMPERATURE_SCALE = 200.0  # K; differences of temperature in the study lie within +-400 K


class HeatSurrogate(nn.Module):
    """Predicts the field of temperature from the five temperatures and the time step.

    Three linear layers see no mesh and no neighbours: what the network knows of heat it learns from samples.
    Only its inputs and outputs are put into the form that the equation suggests:

    - Heat follows differences of temperature: add 10 K to all five and the field is 10 K higher. So the
      network sees the five as differences to their mean, and predicts the field's difference to that mean.
    - A plate changes fast at first and ever slower later: so the network sees the logarithm of time.
    """

    def __init__(self, nb_cells: int, nb_time_steps: int, hidden: int = 256) -> None:
        """Make a network, not yet trained, for fields of `nb_cells` x `nb_cells` and so many time steps."""
        super().__init__()
        self.sizes = {"nb_cells": nb_cells, "nb_time_steps": nb_time_steps, "hidden": hidden}
        self.nb_cells, self.nb_time_steps = nb_cells, nb_time_steps
        self.layers = nn.Sequential(
            nn.Linear(5 + 1, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, nb_cells * nb_cells),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the fields of n samples, (n, nb_cells**2), in K.

        The inputs are (n, 6): five temperatures in K, and the time step, which counts from 0.
        """
        temperatures, time_steps = inputs[:, :5], inputs[:, 5:]
        mean = temperatures.mean(dim=1, keepdim=True)
        log_time = torch.log((time_steps + 1.0) / self.nb_time_steps)  # from -log(nb_time_steps) to 0
        scaled_time = 1.0 + 2.0 * log_time / math.log(self.nb_time_steps)  # from -1 to 1
        scaled_inputs = torch.cat([(temperatures - mean) / TEMPERATURE_SCALE, scaled_time], dim=1)
        return mean + TEMPERATURE_SCALE * self.layers(scaled_inputs)

    def predict(self, parameters: Sequence[float]) -> Tensor:
        """Return the simulation of five temperatures in K: (nb_time_steps, nb_cells, nb_cells), in K."""
        device = next(self.parameters()).device
        time_steps = torch.arange(self.nb_time_steps, dtype=torch.float32, device=device)
        temperatures = torch.tensor(parameters, dtype=torch.float32, device=device)
        inputs = torch.cat([temperatures.expand(self.nb_time_steps, 5), time_steps[:, None]], dim=1)
        with torch.inference_mode():
            return self(inputs).view(self.nb_time_steps, self.nb_cells, self.nb_cells)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network to a file: its sizes and its weights."""
        torch.save({"sizes": self.sizes, "weights": self.state_dict()}, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "HeatSurrogate":
        """Read a network that `save` wrote, onto the CPU; nothing in the file is executed."""
        content = torch.load(path, map_location="cpu", weights_only=True)
        surrogate = cls(**content["sizes"])
        surrogate.load_state_dict(content["weights"])
        return surrogate.eval()
