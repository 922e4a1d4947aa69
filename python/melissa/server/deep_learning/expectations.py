"""How many samples and batches a rank can expect, and whether its watermark can be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from melissa.exceptions import UnsupportedConfiguration
from melissa.server.deep_learning.reservoir import BaseQueue, BufferType
from melissa.server.distribution import steps_of_rank

if TYPE_CHECKING:
    from melissa.server.deep_learning.base_dl_server import DeepMelissaServer

__all__ = ["Expectations", "expect", "expectations_of"]


@dataclass(frozen=True)
class Expectations:
    """What is known before data come; None is not known.

    `samples` that come to this rank, `batches` of its training, and the population at which that starts.
    """

    samples: int | None
    batches: int | None
    watermark: int


def expect(
    buffer_t: BufferType,
    *,
    nb_simulations: int,
    nb_time_steps: int,
    nb_ranks: int,
    batch_size: int,
    buffer_size: int,
    watermark: int,
    pseudo_epochs: int = 1,
    drop_last: bool = False,
    rank: int = 0,
    distribution: str = "round_robin",
    drain: str = "first",
) -> Expectations:
    """Compute a rank's expectations; `nb_time_steps` is 0 while it is not known.

    The number of batches is fixed for FIFO and FIRO only: how often a reservoir delivers a sample depends on
    speeds. Ranks train together: on all of them as many batches as on the one that has the fewest, or the
    most where they `drain` "all". `UnsupportedConfiguration` when the watermark of some rank, or several
    passes over all samples, cannot be: every rank comes to the same verdict.
    """
    gathers_all = buffer_t is BufferType.FIRO and pseudo_epochs > 1
    if nb_time_steps == 0:
        if gathers_all:
            raise UnsupportedConfiguration(
                f"dl_config.pseudo_epochs is {pseudo_epochs}: all samples are gathered before the first "
                "pass, so their number must be known; set study_options.nb_time_steps"
            )
        return Expectations(None, None, watermark)
    samples = [
        steps_of_rank(
            each,
            nb_ranks=nb_ranks,
            nb_simulations=nb_simulations,
            nb_time_steps=nb_time_steps,
            distribution=distribution,
        )
        for each in range(nb_ranks)
    ]
    if gathers_all:
        if max(samples) > buffer_size:
            raise UnsupportedConfiguration(
                f"dl_config.buffer_size is {buffer_size}, but "
                f"{_come(samples, max(samples), nb_simulations, nb_time_steps)}: with pseudo_epochs = "
                f"{pseudo_epochs} the buffer must hold them all"
            )
        watermark = samples[rank]
    elif buffer_t is not BufferType.FIFO and watermark > min(samples):
        raise UnsupportedConfiguration(
            f"dl_config.per_server_watermark is {watermark}, but only "
            f"{_come(samples, min(samples), nb_simulations, nb_time_steps)}: training could never start; "
            f"set it to {min(samples)} or less"
        )
    if buffer_t not in (BufferType.FIFO, BufferType.FIRO):
        return Expectations(samples[rank], None, watermark)
    deliveries = (max if drain == "all" else min)(samples) * pseudo_epochs
    batches = deliveries // batch_size if drop_last else -(-deliveries // batch_size)
    return Expectations(samples[rank], batches, watermark)


def _come(samples: list[int], some: int, nb_simulations: int, nb_time_steps: int) -> str:
    """Say how many samples come to the rank that gets `some`."""
    rank, study = samples.index(some), f"{nb_simulations} simulations x {nb_time_steps} time steps"
    if len(samples) == 1:
        return f"{some} samples come to the server ({study})"
    return f"{some} samples come to server rank {rank} of {len(samples)} ({study} in all)"


def expectations_of(server: DeepMelissaServer, buffer: BaseQueue | None) -> Expectations:
    """Compute what a server can expect of its `buffer`, or of the one that it will make.

    A buffer that the study's class has made may differ from the configuration.
    """
    return expect(
        server._buffer_t() if buffer is None else buffer.kind,
        nb_simulations=server.nb_simulations,
        nb_time_steps=server.nb_time_steps,
        nb_ranks=server.comm_size,
        batch_size=server.batch_size,
        buffer_size=server.buffer_size if buffer is None else buffer.maxsize,
        watermark=(server.per_server_watermark or 0) if buffer is None else buffer.watermark,
        pseudo_epochs=server.pseudo_epochs if buffer is None else buffer.pseudo_epochs,
        drop_last=server._drop_last,
        rank=server.rank,
        distribution=server.dl_config["distribution"],
        drain=server.dl_config["drain"],
    )
