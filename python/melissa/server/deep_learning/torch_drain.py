"""Training to the last sample of every rank, with torch: ranks that run dry join those that still train."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from melissa.server.deep_learning.torch_checkpoint import on_cpu
from melissa.server.deep_learning.training_loop import fetch, train_batch

if TYPE_CHECKING:
    from melissa.server.deep_learning.lanes import BatchSource, Delivery
    from melissa.server.deep_learning.torch_server import TorchServer

__all__ = ["train_apart"]


def train_apart(server: TorchServer, source: BatchSource, delivery: Delivery | None, batch_idx: int) -> int:
    """Train what ranks have left when the first of them is dry; return the largest number of batches.

    `delivery` is this rank's next batch, None where it has no more. Such a rank takes part in the others'
    exchanges of gradients with zeros, as ``DistributedDataParallel.join`` does. The sum of gradients is
    divided by the number of all ranks as before: every sample has the same weight.

    The ranks part and meet again and again: as often as a checkpoint is written between two batches, that is
    between two steps of the rank that trains longest. There all have its weights, its optimizer's state, and
    its number of batches.
    """
    while server.comm.any(delivery is not None):
        until = _next_meeting(server, batch_idx)
        with server.model.join(divide_by_initial_world_size=True):
            while delivery is not None and batch_idx < until:
                batch_idx += 1
                train_batch(server, source, delivery, batch_idx)
                # Let go of the arrays before the next batch is asked for: their memory is used again.
                del delivery
                server._on_batch_end(batch_idx)
                server._monitor_batch(batch_idx)
                server._validation(batch_idx)
                delivery = fetch(server, source)
        batch_idx = _share_optimizer(server, batch_idx)
        server._batch_idx = batch_idx
        server._progress.ranks_are_after(batch_idx)
        if server.comm.any(server._ending.checkpoint_wanted):
            server._checkpoint_on_request(batch_idx)
        server._checkpoint(batch_idx)
    return batch_idx


def _next_meeting(server: TorchServer, batch_idx: int) -> float:
    """Return the number of batches after which the ranks meet, if some of them has as many."""
    interval = server.checkpoint_interval if server.checkpoint_interval > 0 else server.nb_batches_update
    return batch_idx + interval - batch_idx % interval if interval > 0 else math.inf


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
