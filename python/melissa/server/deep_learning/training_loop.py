"""The predefined loops of training and validation: here is the order in which hooks are called."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from melissa.server.deep_learning.checkpointing import write_last
from melissa.server.deep_learning.hooks import is_overridden

if TYPE_CHECKING:
    from melissa.server.deep_learning.base_dl_server import DeepMelissaServer
    from melissa.server.deep_learning.lanes import BatchSource, Delivery

__all__ = ["fetch", "run_training", "run_validation", "train_batch"]

logger = logging.getLogger("melissa")


def run_training(server: DeepMelissaServer, source: BatchSource) -> None:
    """Train on every batch that `source` gives, until it ends on one of the ranks.

    `batch_idx` counts from 1, or goes on where ``server.batch_offset`` says. What was learned since the last
    checkpoint is kept in a last one.

    Several ranks agree before each batch that all have one, so that none waits in a collective call for a
    rank that ran dry. They fetch one batch ahead for that: while batch b is trained, the answer for batch
    b + 1 is on its way. What is left when one rank is dry is trained by `_drain`, or not at all.
    """
    batch_idx = server.batch_offset
    fetches_ahead = server.comm_size > 1
    # A class with a way of its own to agree does so when it is asked.
    posts = fetches_ahead and not is_overridden(type(server), "_synchronize_data_availability")
    server._ahead.source = source
    server._ending.has_own_loop = False  # a train of the class's own may call that of its base
    server._progress.saves_when_stopped = server.checkpoint_interval > 0
    try:
        delivery = fetch(server, source, posts)
        while not server.other_processes_finished(batch_idx) and delivery is not None:
            if server._flags.checkpoint_wanted:
                server._checkpoint_on_request(batch_idx)
            ahead = fetch(server, source, posts) if fetches_ahead else None
            batch_idx += 1
            train_batch(server, source, delivery, batch_idx)
            # Let go of the arrays before the next batch is asked for: their memory is used again.
            del delivery
            server._on_batch_end(batch_idx)
            server._monitor_batch(batch_idx)
            server._validation(batch_idx)
            server._checkpoint(batch_idx)
            delivery = ahead if fetches_ahead else fetch(server, source, posts)
        _write_last_checkpoint(server, server._drain(source, delivery, batch_idx))
    finally:
        server._progress.saves_when_stopped = False
        source.stop()


def _write_last_checkpoint(server: DeepMelissaServer, batch_idx: int) -> None:
    """Keep what was learned since the last checkpoint.

    What was drawn and is not trained is part of it: a study that was interrupted goes on with that.
    """
    interval = server.checkpoint_interval
    is_interrupted = server.comm.any(server._ending.is_interrupted)
    # Of a study that is interrupted before its first batch, what has come is kept.
    has_news = batch_idx > server.batch_offset or (is_interrupted and batch_idx == 0)
    if interval <= 0 or not has_news:
        return

    def write() -> None:
        if batch_idx % interval:
            server._checkpoint_now(batch_idx)
        elif is_interrupted:
            # Unless it was skipped, that of this batch is there.
            server.checkpoint_state()

    write_last(server, write, is_interrupted=is_interrupted)


def fetch(server: DeepMelissaServer, source: BatchSource, posts: bool = False) -> Delivery | None:
    """Return the next batch, None where there is none; tell the other ranks which, if this rank `posts`."""
    delivery = source.next()
    server._has_batch = delivery is not None
    if delivery is not None:
        server._ahead.fetched.append(delivery)
    if posts:
        server._flags.post(server._has_batch)
    return delivery


def train_batch(server: DeepMelissaServer, source: BatchSource, delivery: Delivery, batch_idx: int) -> None:
    """Train on one batch, and note that in the ledger."""
    server._on_batch_start(batch_idx)
    result = server._training_step(delivery.batch, batch_idx)
    server._loss_check.returned(result, batch_idx, server.nb_batches_update)
    server._accounting.trained(delivery.samples)
    server._ahead.trained(delivery)
    server._accounting.waited(source.wait_seconds)
    server._progress.rank_wait_s = server._flags.wait_seconds


def run_validation(server: DeepMelissaServer, batch_idx: int) -> None:
    """Validate on every batch of the server's `valid_dataloader`; without one, do nothing.

    A dataloader without a batch is warned of once: a generator has none the second time.
    """
    dataloader = server.valid_dataloader
    if dataloader is None:
        return
    nb_batches = 0
    server._on_validation_start(batch_idx)
    for valid_batch_idx, batch in enumerate(dataloader):
        server._validation_step(batch, valid_batch_idx, batch_idx)
        nb_batches = valid_batch_idx + 1
    server._on_validation_end(batch_idx)
    if nb_batches == 0 and not server._has_warned_of_no_validation:
        server._has_warned_of_no_validation = True
        logger.warning(
            f"the valid_dataloader, a {type(dataloader).__name__}, gave no batch after training batch "
            f"{batch_idx}: nothing was validated. A generator can be iterated once only; a list, or an "
            "object whose __iter__ makes a new iterator, serves every validation"
        )
