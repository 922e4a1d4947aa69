"""The server of the example on several ranks, with what large models ask for besides.

Nothing of this is needed to train on several ranks: `HeatServer` does that as it is, on two ranks and on one.
Melissa gives every rank its share of the samples, wraps the model in torch's ``DistributedDataParallel``,
which averages the ranks' gradients, and validates on rank 0. How a training step is made is the study's own.
"""

import contextlib
from typing import Any

import torch
from heat_server import HeatServer
from torch import Tensor

NB_ACCUMULATED = 2  # batches whose gradients make one step of the optimiser


class HeatServerDdp(HeatServer):
    """Trains in bfloat16 where there is a GPU, and steps the optimiser once for every two batches."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, **kwargs: Any) -> None:
        """Add up the gradients of a batch; improve the network when it is the last one of a group."""
        inputs, fields = self.to_device(batch)
        is_last = batch_idx % NB_ACCUMULATED == 0
        with contextlib.ExitStack() as contexts:
            if self.comm_size > 1 and not is_last:
                # Ranks exchange gradients with the last batch of a group only. All of them have the same
                # batch_idx, so they agree on which one that is.
                contexts.enter_context(self.model.no_sync())
            # The weights stay float32. bfloat16 has the range of float32, so the loss needs no scaling; what
            # it lacks is precision, so the loss is computed in float32.
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                prediction = self.model(inputs)
            loss = torch.nn.functional.mse_loss(prediction.float(), fields)
            (loss / NB_ACCUMULATED).backward()
        if is_last:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.note_loss(loss, batch_idx)
