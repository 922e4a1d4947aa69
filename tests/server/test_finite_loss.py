"""A loss that is no number ends the study."""

import numpy as np
import pytest
import torch

from melissa.exceptions import TrainingError
from melissa.server.deep_learning.finite_loss import LossCheck

NAN = float("nan")


@pytest.mark.parametrize(
    "result",
    [
        NAN,
        float("inf"),
        np.float32(NAN),
        torch.tensor(NAN),
        torch.tensor([NAN], requires_grad=True),
        {"loss": torch.tensor(NAN), "other": 1.0},
        {"loss": -float("inf")},
    ],
)
def test_a_returned_loss_must_be_finite(result):
    with pytest.raises(TrainingError, match=r"training_step returned a loss of -?(nan|inf) at batch 12"):
        LossCheck().returned(result, 12, 100)
    LossCheck(is_on=False).returned(result, 12, 100)


@pytest.mark.parametrize(
    "result", [None, 0.5, 3, "nan", torch.tensor(0.5), torch.tensor([NAN, 1.0]), {"other": NAN}, [NAN]]
)
def test_anything_else_that_is_returned_is_left_alone(result):
    LossCheck().returned(result, 12, 100)


def test_a_logged_loss_must_be_finite():
    check = LossCheck()
    check.logged("Loss/train", 0.5)
    check.logged("gradient_norm", NAN)
    with pytest.raises(TrainingError, match="the scalar Loss/train that is logged is nan"):
        check.logged("Loss/train", NAN)
    LossCheck(is_on=False).logged("Loss/train", NAN)


class OnGpu:
    """A tensor of one element on a GPU, to read which waits for the GPU."""

    device = torch.device("cuda:0")
    looks = 0

    def numel(self):
        return 1

    def detach(self):
        return self

    def item(self):
        self.looks += 1
        return 0.5


def test_a_loss_on_a_gpu_is_looked_at_now_and_then():
    loss = OnGpu()
    for batch_idx in range(1, 301):
        LossCheck().returned(loss, batch_idx, 100)
    assert loss.looks == 3
