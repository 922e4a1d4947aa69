"""Which lane the predefined training loop gets its batches from, made of the hooks of the user's class."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from melissa.server.deep_learning.collate import collate
from melissa.server.deep_learning.hooks import choose_lane, is_overridden
from melissa.server.deep_learning.lanes import BatchSource, FastLane, ViewLane
from melissa.server.deep_learning.sample_arrays import SampleArrays
from melissa.server.deep_learning.sample_source import SampleSource

if TYPE_CHECKING:
    from melissa._melissa import Sample
    from melissa.server.deep_learning.base_dl_server import DeepMelissaServer

__all__ = ["make_batch_maker", "make_batch_source"]

logger = logging.getLogger("melissa")


def make_batch_source(server: DeepMelissaServer) -> BatchSource:
    """Make the lane that the hooks of the server's class ask for."""
    lane = choose_lane(type(server), has_default_batch=server._has_default_batch)
    logger.info(f"{'fast' if lane.is_fast else 'view'} lane: {lane.reason}")
    source = _fast_lane(server) if lane.is_fast else _view_lane(server)
    return source if server._fast_dev_run is None else server._fast_dev_run.limited(source)


def make_batch_maker(server: DeepMelissaServer) -> Callable[[Sequence[Sample]], Any]:
    """Return what makes of single samples a batch as the predefined training loop has it."""
    if choose_lane(type(server), has_default_batch=server._has_default_batch).is_fast:
        transform = _batch_transform(server)
        return lambda samples: transform(SampleArrays(samples, server.buffer.field_names))
    return lambda samples: collate(
        [
            server.process_simulation_data(server.buffer.view(sample), server.config_dict)
            for sample in samples
        ],
        server._framework_t,
    )


def _batch_transform(server: DeepMelissaServer) -> Callable[[Any], Any]:
    if is_overridden(type(server), "process_simulation_batch"):
        process = cast(Any, server).process_simulation_batch

        return lambda batch: server._adopt_batch(process(batch, server.config_dict))
    return server._default_batch


def _fast_lane(server: DeepMelissaServer) -> BatchSource:
    transform = _batch_transform(server)
    restored = server._ahead.take_restored()
    return FastLane(server.buffer, server.batch_size, server._drop_last, transform, server._wait, restored)


def _view_lane(server: DeepMelissaServer) -> BatchSource:
    admit = None if server._checks is None else server._checks.admit
    restored = server._ahead.take_restored()
    samples = [] if restored is None else restored.pending_samples()
    source = SampleSource(server.buffer, server.batch_size, server._wait, admit, restored=samples)
    return ViewLane(
        source,
        server.batch_size,
        server._drop_last,
        lambda data: server.process_simulation_data(data, server.config_dict),
        lambda samples: collate(samples, server._framework_t),
    )
