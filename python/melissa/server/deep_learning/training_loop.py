"""The predefined loops of training and validation: here is the order in which hooks are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from melissa.server.deep_learning.base_dl_server import DeepMelissaServer
    from melissa.server.deep_learning.lanes import BatchSource

__all__ = ["run_training", "run_validation"]


def run_training(server: DeepMelissaServer, source: BatchSource) -> None:
    """Train on every batch that `source` gives, until it ends on one of the ranks.

    `batch_idx` counts from 1, or goes on where ``server.batch_offset`` says. What was learned since the last
    checkpoint is kept in a last one.
    """
    batch_idx = server.batch_offset
    try:
        while True:
            delivery = source.next()
            server._has_batch = delivery is not None
            if server.other_processes_finished(batch_idx) or delivery is None:
                break
            batch_idx += 1
            server._on_batch_start(batch_idx)
            server._training_step(delivery.batch, batch_idx)
            server._accounting.trained(delivery.samples)
            server._accounting.waited(source.wait_seconds)
            # Let go of the arrays before the next batch is asked for: their memory is used again.
            del delivery
            server._on_batch_end(batch_idx)
            server._monitor_batch(batch_idx)
            server._validation(batch_idx)
            server._checkpoint(batch_idx)
    finally:
        source.stop()
    interval = server.checkpoint_interval
    if batch_idx > server.batch_offset and interval > 0 and batch_idx % interval:
        server.checkpoint(batch_idx)


def run_validation(server: DeepMelissaServer, batch_idx: int) -> None:
    """Validate on every batch of the server's `valid_dataloader`; without one, do nothing."""
    if server.valid_dataloader is None:
        return
    server._on_validation_start(batch_idx)
    for valid_batch_idx, batch in enumerate(server.valid_dataloader):
        server._validation_step(batch, valid_batch_idx, batch_idx)
    server._on_validation_end(batch_idx)
