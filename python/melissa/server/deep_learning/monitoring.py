"""Rates, waits and the population of the buffer, for TensorBoard and for the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from melissa._melissa import Receiver
    from melissa.server.deep_learning.reservoir import BaseQueue
    from melissa.server.deep_learning.tensorboard import TensorboardLogger
    from melissa.server.progress import StudyProgress

__all__ = ["ExperimentalMonitoringMixin", "population_scalars"]

logger = logging.getLogger("melissa")


@dataclass
class _Interval:
    """Figures at the last time that rates were logged."""

    time: float
    samples: int
    trainer_waited: float
    receiver_waited: float


def population_scalars(statistics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return what `melissa._melissa.Buffer.statistics` says as scalars: tag -> name -> value.

    ``buffer_mean`` and ``buffer_std`` are those of the inputs (``parameter_0``, ..., ``time_step``);
    ``buffer_seen`` says how often the samples were delivered, ``buffer_age`` how many samples entered the
    buffer after them. Empty for an empty population.
    """
    if not statistics["samples"]:
        return {}
    names = [f"parameter_{index}" for index in range(len(statistics["input_mean"]) - 1)]
    names.append("time_step")
    return {
        "buffer_mean": dict(zip(names, statistics["input_mean"], strict=True)),
        "buffer_std": dict(zip(names, statistics["input_std"], strict=True)),
        "buffer_seen": {
            "mean": statistics["deliveries_mean"],
            "max": statistics["deliveries_max"],
            "unseen": statistics["unseen"],
        },
        "buffer_age": {"mean": statistics["age_mean"], "max": statistics["age_max"]},
    }


class ExperimentalMonitoringMixin:
    """Logs how training goes, with the tags that studies look for.

    Every ``nb_batches_update`` batches the predefined loop logs, at the number of the batch,

    - ``samples_per_second``: of this rank, since the last time; on rank 0 of several also
      ``samples_per_second_all_ranks``, the sum of all over the last seconds;
    - ``put_get_inc``: samples that entered the buffer less those that left it for training;
    - ``trainer_wait_share``, ``receiver_wait_share``: the share of the time in which training waited for
      data, and in which the receiver waited for room in the buffer;
    - with ``dl_config.get_buffer_statistics`` what the population is like: see `population_scalars`. Each
      sample is looked at for that, in about a tenth of a microsecond.

    The control thread logs, at the number of samples that this rank has received and also beside a `train`
    of the user's own, ``put_time`` (seconds that a sample waited for room) and ``buffer_size`` (the
    population).
    """

    if TYPE_CHECKING:
        rank: int
        comm_size: int
        nb_batches_update: int
        dl_config: dict[str, Any]
        _progress: StudyProgress
        _receiver: Receiver | None

        @property
        def tb_logger(self) -> TensorboardLogger: ...  # noqa: D102
        @property
        def buffer(self) -> BaseQueue: ...  # noqa: D102

    _interval: _Interval | None = None
    _room_waited = 0.0
    _samples_put = 0.0

    def _monitor_batch(self, batch_idx: int) -> None:
        """Log rates if it is time to."""
        before = self._interval
        if before is None:
            self._interval = self._interval_now()
        elif self.nb_batches_update > 0 and batch_idx % self.nb_batches_update == 0:
            self._interval = self._interval_now()
            self._log_interval(before, self._interval, batch_idx)

    def _interval_now(self) -> _Interval:
        progress = self._progress
        receiver_waited = 0.0 if self._receiver is None else self._receiver.counters()["room_wait_s"]
        return _Interval(
            time=time.perf_counter(),
            samples=progress.samples_delivered,
            trainer_waited=progress.trainer_wait_s,
            receiver_waited=receiver_waited,
        )

    def _log_interval(self, before: _Interval, now: _Interval, batch_idx: int) -> None:
        elapsed = max(now.time - before.time, 1e-9)
        rate = (now.samples - before.samples) / elapsed
        scalars = {
            "samples_per_second": rate,
            "put_get_inc": self.buffer.put_get_metric.val,
            "trainer_wait_share": (now.trainer_waited - before.trainer_waited) / elapsed,
            "receiver_wait_share": (now.receiver_waited - before.receiver_waited) / elapsed,
        }
        if self.rank == 0 and self.comm_size > 1:
            scalars["samples_per_second_all_ranks"] = self._progress.samples_per_second_of_all
        for tag, value in scalars.items():
            self.tb_logger.log_scalar(tag, value, batch_idx)
        logger.debug(f"batch {batch_idx}: {rate:.0f} samples/s, population {len(self.buffer)}")
        if self.dl_config["get_buffer_statistics"]:
            for tag, values in population_scalars(self.buffer.native.statistics()).items():
                self.tb_logger.log_scalars(tag, values, batch_idx)

    def _monitor_reception(self, counters: dict[str, float]) -> None:
        """Log population and time per put, at the number of samples received, from the control thread."""
        received = counters["samples_received"]
        if received == self._samples_put:
            return
        waited = counters.get("room_wait_s", 0.0)
        per_put = (waited - self._room_waited) / (received - self._samples_put)
        self._samples_put, self._room_waited = received, waited
        self.tb_logger.log_scalar("put_time", per_put, int(received))
        self.tb_logger.log_scalar("buffer_size", len(self.buffer), int(received))
