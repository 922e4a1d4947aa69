"""Studies of the tests of data-parallel training, one after the other in the same ranks.

Each tells what its test looks at as one line of JSON: ``python torch_studies.py NAME...``.
"""

import json
import logging
import os
import platform
import random
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from fed_torch import BATCH, Accounting, Fed, network, sample, train, weights
from torch.nn.parallel import DistributedDataParallel

from melissa.exceptions import UnsupportedConfiguration
from melissa.server.communicator import make_communicator
from melissa.server.deep_learning.torch_server import checkpoint

comm = make_communicator()


def told(server, **more):
    return {
        "weights": weights(server),
        "nb_samples": server._accounting.nb_samples,
        "batches": server._batch_idx,
        "wrapper": type(server.model).__name__,
        **more,
    }


class Even(Fed):
    def on_train_start(self):
        self.wrapper = type(self.model).__name__


def even():
    server = train(Even)
    return told(server, in_hooks=server.wrapper, group_left=torch.distributed.is_initialized())


def even_slurm():
    """The same where Slurm says who a rank is."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    server = train(Even, setup_slurm_ddp=True)
    master = [os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]]
    from melissa.utility import idr_torch

    assert master == [os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]]
    ranks = [idr_torch.rank, idr_torch.local_rank, idr_torch.size]
    return told(server, in_hooks=server.wrapper, master=master, node=platform.node(), idr_torch=ranks)


def alone():
    """What one rank makes of the batches that all ranks train together in `even`."""
    return told(train(Even, batch_size=BATCH * int(os.environ["NB_BATCHES_IN_ONE"])))


class Unprepared(Fed):
    """Ranks that begin with other weights, and an optimizer that has a state on the CPU already."""

    def prepare_training_attributes(self):
        model = network()
        torch.manual_seed(self.rank)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        return model, torch.optim.Adagrad(model.parameters(), lr=0.01)


def unprepared():
    return told(train(Unprepared))


class Wrapped(Fed):
    """A class that wraps its model itself, as studies of 2023 do."""

    def prepare_training_attributes(self):
        self.own = DistributedDataParallel(network().to(self.device), find_unused_parameters=True)
        return self.own, torch.optim.Adam(self.own.parameters(), lr=0.01)


def wrapped():
    server = train(Wrapped)
    return told(server, is_own=server.model is server.own)


class Drifting(Fed):
    """A learning rate that is another one on each rank."""

    def on_batch_start(self, batch_idx):
        self.optimizer.param_groups[0]["lr"] = 0.01 * (self.rank + 1)


def drifting():
    warnings = []
    logger = logging.getLogger("melissa")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logger.addHandler(handler)
    train(Even)
    train(Drifting)
    logger.removeHandler(handler)
    return {"warnings": [text for text in warnings if "weights of the server's ranks differ" in text]}


class Normalised(Fed):
    """A model with buffers, which a data-parallel forward call would exchange between ranks."""

    nb_batches = (4,)

    def prepare_training_attributes(self):
        model = network(batch_norm=True)
        self.seen = []
        if self.rank == 0:
            self.valid_dataloader = [torch.zeros(2, 3)]
        return model, torch.optim.SGD(model.parameters(), lr=0.01)

    def on_validation_start(self, batch_idx):
        self.seen.append(type(self.model).__name__)

    def validation_step(self, batch, valid_batch_idx, batch_idx):
        # In training mode, and with gradients: no study should, and none hangs that does.
        self.model(batch)
        return {}

    def on_train_end(self):
        if self.rank == 0:
            self.validation(self._batch_idx)


def normalised():
    server = train(Normalised, nb_batches_update=2)
    return told(server, seen=server.seen)


class Uneven(Fed):
    """Ranks of ten, seven and no batches; one ends with a short batch of one sample."""

    nb_batches = (10, 7, 0)

    def _receive(self):
        self._accounting = Accounting()
        nb_samples = self.nb_batches[self.rank] * BATCH + (self.rank == 1)
        for number in range(nb_samples):
            self.buffer.put(sample(number * self.comm_size + self.rank))
        self.buffer.native.close()


def reference():
    """What two ranks of ten and of seven batches and a sample make together, computed by one process."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for batch_idx in range(10):
        optimizer.zero_grad()
        for rank, nb_samples in enumerate((40, 29)):
            numbers = range(batch_idx * BATCH, min((batch_idx + 1) * BATCH, nb_samples))
            if numbers:
                samples = [sample(number * 2 + rank) for number in numbers]
                inputs = torch.tensor([[*data.parameters, data.time_step] for data in samples])
                fields = torch.tensor(np.stack([data.data["u"] for data in samples]))
                # A rank without a batch counts in the mean of gradients, with zeros.
                (torch.nn.functional.mse_loss(model(inputs), fields) / 2).backward()
        optimizer.step()
    return {"weights": json.dumps({name: value.tolist() for name, value in model.state_dict().items()})}


class UnevenBackwards(Uneven):
    """The rank that writes checkpoints runs dry first."""

    nb_batches = (3, 6, 5)

    def validation_step(self, batch, valid_batch_idx, batch_idx):
        self.model(batch)
        return {}

    def on_train_start(self):
        self.valid_dataloader = [torch.zeros(2, 3)]


def uneven_first():
    return told(train(Uneven))


def uneven_all():
    return told(train(Uneven, drain="all"))


def uneven_meeting():
    """Ranks that have drained apart meet for checkpoints in between."""
    server = train(Uneven, drain="all", checkpoint_interval=2)
    comm.barrier()
    return told(server, saved_batch=torch.load("checkpoints/model.pt", weights_only=True)["batch"])


def uneven_backwards():
    server = train(UnevenBackwards, drain="all", checkpoint_interval=100, nb_batches_update=2)
    comm.barrier()
    content = torch.load("checkpoints/model.pt", weights_only=True)
    steps = {int(state["step"]) for state in content["optimizer_state_dict"]["state"].values()}
    same = all(
        torch.equal(value, server.unwrapped_model.state_dict()[name])
        for name, value in content["model_state_dict"].items()
    )
    return told(server, saved_batch=content["batch"], steps=sorted(steps), same=same)


class Unwrappable(Fed):
    def prepare_training_attributes(self):
        return "no module", None


def unjoinable():
    try:
        train(Unwrappable, drain="all")
    except UnsupportedConfiguration as error:
        return {"error": str(error)}
    return {}


class Restarted(Fed):
    """Draws from every random state in each step, and writes a checkpoint for a restart in the middle."""

    nb_batches = (6,)
    cut = 3

    def prepare_training_attributes(self):
        self.numbers = []
        return super().prepare_training_attributes()

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        self.numbers.append([torch.rand(1).item(), float(np.random.rand()), random.random()])

    def on_batch_end(self, batch_idx):
        if batch_idx == self.cut:
            self._checkpoint_model(self.folder())

    def folder(self):
        return Path(f"restart/rank{self.rank}")


class Again(Restarted):
    """Goes on from that checkpoint with the batches after it."""

    cut = None

    def prepare_training_attributes(self):
        torch.manual_seed(99)
        model, optimizer = super().prepare_training_attributes()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        return model, optimizer

    def _receive(self):
        self._restore_model(self.folder())
        self._accounting = Accounting()
        for number in range(3 * BATCH, 6 * BATCH):
            self.buffer.put(sample(number * self.comm_size + self.rank))
        self.buffer.native.close()

    def on_train_start(self):
        torch.rand(7)  # as making validation data does


def restarted():
    first = train(Restarted)
    second = train(Again)
    return told(second, uninterrupted=weights(first), numbers=[first.numbers[3:], second.numbers])


def old_checkpoint():
    """The function of 2023: every rank calls it, rank 0 writes."""
    model = network()
    checkpoint(model=model, optimizer=None, batch=5, loss=torch.tensor(0.5), path=f"old{comm.rank}")
    return {"written": sorted(str(path) for path in Path().glob(f"old{comm.rank}/*"))}


if __name__ == "__main__":
    try:
        results = {name: globals()[name]() for name in sys.argv[1:]}
    except BaseException:
        traceback.print_exc()
        # Not through MPI's own end, in which ranks wait for each other.
        os._exit(1)
    Path(f"told.{comm.rank}").write_text(json.dumps(results))
