"""The server of the example: trains `HeatSurrogate` on the plates that are being simulated."""

import math
from typing import Any

import numpy as np
import torch
from heat import COLDEST, FIELD_NAME, HOTTEST, NB_CELLS, NB_TIME_STEPS, PARAMETER_NAMES, solve
from mean_field import MeanField
from numpy.typing import NDArray
from plots import draw_losses, draw_prediction
from surrogate import HeatSurrogate
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from melissa import ParameterSamplerType, TorchServer, rank_zero_only

FIRST_LEARNING_RATE, LAST_LEARNING_RATE = (
    3e-3,
    3e-5,
)  # after 4,000 batches 1e-3 is a third worse, 5e-3 no better

VALIDATION_SEED = 20_000  # the same plates whatever the study's seed: studies can be compared


class HeatServer(TorchServer):
    """Draws temperatures, trains on what the solvers send, and says how good the surrogate is."""

    def __init__(self, config_dict: dict[str, Any]) -> None:
        """Choose how the temperatures are drawn: evenly spread over their range, by the study's seed."""
        super().__init__(config_dict)
        self.set_parameter_sampler(ParameterSamplerType.HALTON, l_bounds=[COLDEST], u_bounds=[HOTTEST])
        self.mean_field = MeanField()
        self.nb_batches = 0
        self.squared_errors: list[float] = []  # of the last validation, one for each simulation, in K2
        self.training_curve: list[tuple[int, float]] = []
        self.validation_curve: list[tuple[int, float]] = []

    def prepare_training_attributes(self) -> tuple[HeatSurrogate, torch.optim.Optimizer]:
        """Make the network and its optimiser."""
        torch.manual_seed(self.study_options["seed"])
        model = HeatSurrogate(NB_CELLS, NB_TIME_STEPS).to(self.device)
        # The network has 2.6 million weights and a batch has ten samples: what a batch costs is the
        # optimiser's passes over the weights. Fused, it needs one.
        return model, torch.optim.Adam(model.parameters(), lr=FIRST_LEARNING_RATE, fused=True)

    @rank_zero_only
    def on_train_start(self) -> None:
        """Simulate the plates for validation, while the first clients fill the buffer up to its watermark."""
        rng = np.random.default_rng(VALIDATION_SEED)
        # A key of this study's own: Melissa passes on what it does not know.
        nb_simulations = self.study_options["validation_simulations"]
        size = (nb_simulations, len(PARAMETER_NAMES))
        self.validation_parameters = rng.uniform(COLDEST, HOTTEST, size)
        time_steps = np.arange(NB_TIME_STEPS)[:, None]
        inputs, fields = [], []
        for parameters in self.validation_parameters:
            inputs.append(np.hstack([np.tile(parameters, (NB_TIME_STEPS, 1)), time_steps]))
            fields.append([field.ravel() for field in solve(parameters)])
        dataset = TensorDataset(
            torch.tensor(np.concatenate(inputs), dtype=torch.float32),
            torch.tensor(np.concatenate(fields), dtype=torch.float32),
        )
        self.valid_dataloader = DataLoader(dataset, batch_size=NB_TIME_STEPS)  # a simulation per batch

    def process_simulation_batch(
        self, batch: Any, config_dict: dict[str, Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the (n, 6) inputs and the (n, cells) temperatures of a batch that Melissa gathered.

        Without the mean field this method would not be needed: these two are what training steps get anyway.
        """
        self.mean_field.add(batch)
        return batch.inputs, batch.fields[FIELD_NAME]

    def on_batch_start(self, batch_idx: int) -> None:
        """Set the learning rate: along a cosine from the first to the last one.

        How many batches a Reservoir will give is not known beforehand: that depends on how fast the solvers
        are. So progress is counted in the samples that come, and in those that leave the buffer in the end.
        """
        share = 0.5 * (1.0 + math.cos(math.pi * self.progress))
        for group in self.optimizer.param_groups:
            group["lr"] = LAST_LEARNING_RATE + share * (FIRST_LEARNING_RATE - LAST_LEARNING_RATE)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, **kwargs: Any) -> None:
        """Improve the network by one batch."""
        inputs, fields = self.to_device(batch)
        self.optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(self.model(inputs), fields)
        loss.backward()
        self.optimizer.step()
        self.note_loss(loss, batch_idx)

    def note_loss(self, loss: Tensor, batch_idx: int) -> None:
        """Take note of the root of a batch's loss now and then: on a GPU, to read it is to wait for it."""
        self.nb_batches = batch_idx
        if batch_idx % 10 == 0:
            error = math.sqrt(loss.item())  # in K, which says more than K2
            self.training_curve.append((batch_idx, error))
            self.tb_logger.log_scalar("Loss/train", error, batch_idx)

    def on_validation_start(self, batch_idx: int) -> None:
        """Forget the last validation."""
        self.squared_errors.clear()

    def validation_step(
        self, batch: tuple[Tensor, Tensor], valid_batch_idx: int, batch_idx: int, **kwargs: Any
    ) -> dict[str, float]:
        """Compare the prediction of one simulation with what was simulated."""
        inputs, fields = self.to_device(batch)
        with torch.inference_mode():
            squared_error = torch.nn.functional.mse_loss(self.model(inputs), fields).item()
        self.squared_errors.append(squared_error)
        return {"squared_error": squared_error}

    def on_validation_end(self, batch_idx: int) -> None:
        """Take note of the root mean square error over all validation simulations, in K."""
        error = math.sqrt(np.mean(self.squared_errors))
        self.validation_curve.append((batch_idx, error))
        self.tb_logger.log_scalar("Loss/valid", error, batch_idx)

    @rank_zero_only
    def on_train_end(self) -> None:
        """Validate the final network beside the best constant prediction, save it, draw pictures."""
        self.validation(self.nb_batches)
        error = self.validation_curve[-1][1]
        constant_error = self.mean_field.error(self.valid_dataloader)
        # For study_report.json and for the table that the launcher prints.
        self.report_extra = {
            "error_K": error,
            "error_of_mean_field_K": constant_error,
            "times_better": constant_error / error,
        }

        # The working directory is the study's output folder.
        surrogate = self.unwrapped_model
        surrogate.save("surrogate.pt")
        draw_losses("losses.png", self.training_curve, self.validation_curve, constant_error)
        # The simulation of median error stands for all: neither the best one nor the worst.
        median = int(np.argsort(self.squared_errors)[len(self.squared_errors) // 2])
        parameters = self.validation_parameters[median]
        predicted = surrogate.predict(parameters).cpu().numpy()
        simulated = list(self.valid_dataloader)[median][1].numpy().reshape(predicted.shape)
        draw_prediction("prediction.png", parameters, predicted, simulated)
