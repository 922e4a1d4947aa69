"""Rates, waits and the population of the buffer, for TensorBoard and for the log."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from melissa.server.deep_learning.reservoir import BaseQueue
    from melissa.server.deep_learning.tensorboard import TensorboardLogger
    from melissa.server.progress import StudyProgress

__all__ = ["ExperimentalMonitoringMixin", "input_statistics"]

logger = logging.getLogger("melissa")


@dataclass
class _Interval:
    """Figures at the last time that rates were logged."""

    time: float = field(default_factory=time.perf_counter)
    samples: int = 0
    waited: float = 0.0


def input_statistics(buffer: BaseQueue) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """Return mean and standard deviation of the inputs (parameters, time step) over a buffer's population.

    None while it is empty. Each is an array of ``nb_parameters + 1``, float64.
    """
    native = buffer.native
    inputs = []
    for index in range(native.population):
        sample = native.peek(index)
        if sample is None:
            break
        inputs.append([*sample.parameters, float(sample.time_step)])
    if not inputs:
        return None
    table = np.asarray(inputs, dtype=np.float64)
    return table.mean(axis=0), table.std(axis=0)


class ExperimentalMonitoringMixin:
    """Logs how training goes, with the tags that studies look for.

    The predefined loop calls `_monitor_batch` after each batch; every ``nb_batches_update`` of them it logs
    ``samples_per_second``, ``put_get_inc`` and the share of time that training waited. The control thread
    calls `_monitor_reception`, in a train of the user's own, too.
    """

    if TYPE_CHECKING:
        rank: int
        nb_batches_update: int
        dl_config: dict[str, Any]
        _progress: StudyProgress

        @property
        def tb_logger(self) -> TensorboardLogger: ...  # noqa: D102
        @property
        def buffer(self) -> BaseQueue: ...  # noqa: D102

    _interval: _Interval | None = None
    _room_waited = 0.0
    _samples_put = 0.0

    def _monitor_batch(self, batch_idx: int) -> None:
        """Log rates if it is time to."""
        if self._interval is None:
            self._interval = _Interval()
        if self.nb_batches_update < 1 or batch_idx % self.nb_batches_update:
            return
        before = self._interval
        progress = self._progress
        now = _Interval(samples=progress.samples_delivered, waited=progress.trainer_wait_s)
        elapsed = max(now.time - before.time, 1e-9)
        self._interval = now
        rate = (now.samples - before.samples) / elapsed
        self.tb_logger.log_scalar("samples_per_second", rate, batch_idx)
        self.tb_logger.log_scalar("put_get_inc", self.buffer.put_get_metric.val, batch_idx)
        self.tb_logger.log_scalar("trainer_wait_share", (now.waited - before.waited) / elapsed, batch_idx)
        logger.debug(f"batch {batch_idx}: {rate:.0f} samples/s, population {len(self.buffer)}")
        if self.dl_config["get_buffer_statistics"]:
            self._log_input_statistics(batch_idx)

    def _log_input_statistics(self, batch_idx: int) -> None:
        statistics = input_statistics(self.buffer)
        if statistics is None:
            return
        for name, values in zip(("buffer_mean", "buffer_std"), statistics, strict=True):
            *parameters, time_step = map(float, values)
            scalars = {f"parameter_{index}": value for index, value in enumerate(parameters)}
            self.tb_logger.log_scalars(name, scalars | {"time_step": time_step}, batch_idx)

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
