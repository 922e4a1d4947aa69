"""Training to the last sample of every rank, with torch: ranks that run dry join those that still train."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from melissa.server.deep_learning.torch_checkpoint import on_cpu
from melissa.server.deep_learning.training_loop import train_batch

if TYPE_CHECKING:
    from melissa.server.deep_learning.lanes import BatchSource, Delivery
    from melissa.server.deep_learning.torch_server import TorchServer

__all__ = ["train_apart"]


def train_apart(server: TorchServer, source: BatchSource, delivery: Delivery | None, batch_idx: int) -> int:
    """Train what ranks have left when the first of them is dry; return the largest number of batches.

    `delivery` is this rank's next batch, None where it has no more. Such a rank takes part in the others'
    exchanges of gradients with zeros, as ``DistributedDataParallel.join`` does, and has their weights and
    their optimizer's state in the end. The sum of gradients is divided by the number of all ranks as before:
    every sample has the same weight.
    """
    with server.model.join(divide_by_initial_world_size=True):
        while delivery is not None:
            batch_idx += 1
            train_batch(server, source, delivery, batch_idx)
            # Let go of the arrays before the next batch is asked for: their memory is used again.
            del delivery
            server._on_batch_end(batch_idx)
            server._monitor_batch(batch_idx)
            server._validation(batch_idx)
            delivery = source.next()
    return _share_optimizer(server, batch_idx)


def _share_optimizer(server: TorchServer, batch_idx: int) -> int:
    """Give every rank the optimizer's state of the rank that trained longest; return its number of batches.

    Their weights are equal already.
    """
    import torch

    nb_batches: list[int] = server.comm.allgather(batch_idx)
    last = max(nb_batches)
    source = nb_batches.index(last)
    if min(nb_batches) < last and isinstance(server.optimizer, torch.optim.Optimizer):
        content: bytes | None = None
        if server.rank == source:
            file = io.BytesIO()
            torch.save(on_cpu(server.optimizer.state_dict()), file)
            content = file.getvalue()
        content = server.comm.bcast(content, root=source)
        assert content is not None
        server.optimizer.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
    return last
