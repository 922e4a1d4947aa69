"""Which lane the predefined training loop gets its batches from, made of the hooks of the user's class."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from melissa.server.deep_learning.collate import collate
from melissa.server.deep_learning.hooks import choose_lane, is_overridden
from melissa.server.deep_learning.lanes import BatchSource, FastLane, ViewLane
from melissa.server.deep_learning.sample_source import SampleSource

if TYPE_CHECKING:
    from melissa._melissa import Batch
    from melissa.server.deep_learning.base_dl_server import DeepMelissaServer

__all__ = ["make_batch_source"]

logger = logging.getLogger("melissa")


def make_batch_source(server: DeepMelissaServer) -> BatchSource:
    """Make the lane that the hooks of the server's class ask for."""
    lane = choose_lane(type(server), has_default_batch=server._has_default_batch)
    logger.info(f"{'fast' if lane.is_fast else 'view'} lane: {lane.reason}")
    return _fast_lane(server) if lane.is_fast else _view_lane(server)


def _fast_lane(server: DeepMelissaServer) -> BatchSource:
    if is_overridden(type(server), "process_simulation_batch"):
        process = cast(Any, server).process_simulation_batch

        def transform(batch: Batch) -> Any:
            return server._adopt_batch(process(batch, server.config_dict))
    else:
        transform = server._default_batch
    return FastLane(server.buffer, server.batch_size, server._drop_last, transform, server._wait)


def _view_lane(server: DeepMelissaServer) -> BatchSource:
    admit = None if server._checks is None else server._checks.admit
    source = SampleSource(server.buffer, server.batch_size, server._wait, admit)
    return ViewLane(
        source,
        server.batch_size,
        server._drop_last,
        lambda data: server.process_simulation_data(data, server.config_dict),
        lambda samples: collate(samples, server._framework_t),
    )
