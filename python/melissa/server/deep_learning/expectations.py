"""How many samples and batches a rank can expect, and whether its watermark can be reached."""

from __future__ import annotations

from dataclasses import dataclass

from melissa.exceptions import UnsupportedConfiguration
from melissa.server.deep_learning.reservoir import BufferType

__all__ = ["Expectations", "expect"]


@dataclass(frozen=True)
class Expectations:
    """What is known before data come; None is not known.

    `samples` per rank, `batches` of a rank's training, and the population at which its training starts.
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
) -> Expectations:
    """Compute a rank's expectations; `nb_time_steps` is 0 while it is not known.

    The number of batches is fixed for FIFO and FIRO only: how often a reservoir delivers a sample depends on
    speeds. `UnsupportedConfiguration` when the watermark, or several passes over all samples, cannot be.
    """
    gathers_all = buffer_t is BufferType.FIRO and pseudo_epochs > 1
    if nb_time_steps == 0:
        if gathers_all:
            raise UnsupportedConfiguration(
                f"dl_config.pseudo_epochs is {pseudo_epochs}: all samples are gathered before the first "
                "pass, so their number must be known; set study_options.nb_time_steps"
            )
        return Expectations(None, None, watermark)
    # Time step t of simulation s goes to rank (t + s) mod P: ranks differ by a few samples at most.
    samples = nb_simulations * nb_time_steps // nb_ranks
    come = (
        f"{samples} samples come to a server rank ({nb_simulations} simulations x {nb_time_steps} time "
        f"steps / {nb_ranks})"
    )
    if gathers_all:
        watermark = samples
        if samples > buffer_size:
            raise UnsupportedConfiguration(
                f"dl_config.buffer_size is {buffer_size}, but {come}: with pseudo_epochs = {pseudo_epochs} "
                "the buffer must hold them all"
            )
    elif buffer_t is not BufferType.FIFO and watermark > samples:
        raise UnsupportedConfiguration(
            f"dl_config.per_server_watermark is {watermark}, but only {come}: training could never start; "
            f"set it to {samples} or less"
        )
    if buffer_t not in (BufferType.FIFO, BufferType.FIRO):
        return Expectations(samples, None, watermark)
    deliveries = samples * pseudo_epochs
    batches = deliveries // batch_size if drop_last else -(-deliveries // batch_size)
    return Expectations(samples, batches, watermark)
