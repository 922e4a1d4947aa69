"""How a training server ends: in order, with all its ranks, or after a failure, waiting for nobody."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from melissa.launcher.message import Finished
from melissa.server.deep_learning.checkpointing import wait_until_written
from melissa.server.deep_learning.tensorboard import convert_tb_logs_to_df
from melissa.server.extension_log import forward_extension_log
from melissa.server.ranks.agent import RankAgent
from melissa.server.report import StudyReport

if TYPE_CHECKING:
    from melissa.server.deep_learning.base_dl_server import DeepMelissaServer

__all__ = ["Finalization", "agree_on_stop", "finalize"]

logger = logging.getLogger("melissa")


class Finalization:
    """Has a server end once.

    After a failure of another rank the server may be ended beside a main thread that is stuck: who comes
    while another is at it waits, and does what that one has not come to the end of.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_over = False

    @contextmanager
    def once(self) -> Iterator[bool]:
        """Hold others off; gives whether there is anything to do, which is done if nothing is raised."""
        with self._lock:
            yield not self._is_over
            self._is_over = True


def agree_on_stop(server: DeepMelissaServer) -> int:
    """Return the exit status for all ranks, which have trained their last batch: 0 unless one was stopped.

    A rank that a signal has stopped ends training on all of them with its next batch, which may be before
    rank 0 hears why.
    """
    stops = server.comm.allgather((server._ending.stop_reason, server._ending.stop_status))
    for reason, status in stops:
        if reason is not None and status != 0:
            server._ending.stop(reason, status)
            return int(status)
    return 0


def finalize(server: DeepMelissaServer, exit_: int) -> None:
    """End the server with the status `exit_`; 1 is a failure."""
    server._progress.training_ends()
    server.exit_status = exit_
    if exit_ == 1:
        _finalize_after_failure(server)
    else:
        _finalize_in_order(server, exit_)


def _finalize_in_order(server: DeepMelissaServer, exit_: int) -> None:
    """Wait for clients and other ranks, write the report, tell the launcher."""
    report: dict[str, Any] = {}
    # All ranks have trained their last batch when this one comes to know whether one has received all.
    has_received_all = server.comm.any(server._receiver is not None and server.buffer.native.closed)
    if server._checkpoints is not None:
        # While the control thread lives, which tells the launcher that this may take its time.
        with server._progress.saving():
            wait_until_written(server._checkpoints, server._ending)
    if server._ensemble is not None:
        report = server._ensemble.finish(has_received_all).content
        if server._fast_dev_run is not None:
            report["fast_dev_run"] = server._fast_dev_run.figures(server)
    _close_logs(server)
    server._needed_link().send(Finished(exit_, report))
    if isinstance(server._ranks, RankAgent):
        server._ranks.wait_for_end()
    if server._ranks is not None:
        server._ranks.end()
    _close_receiver(server)


def _finalize_after_failure(server: DeepMelissaServer) -> None:
    """End everything without waiting for anybody; a step that fails is logged, and the others are taken."""
    report: StudyReport | None = None
    with _going_on():
        report = None if server._ensemble is None else server._ensemble.abort()
    with _going_on():
        _close_logs(server)
    if report is not None and server._link is not None:
        with _going_on():
            server._link.send(Finished(1, report.content))
    if server._ranks is not None:
        with _going_on():
            server._ranks.end()
    with _going_on():
        _close_receiver(server)


@contextmanager
def _going_on() -> Iterator[None]:
    try:
        yield
    except Exception:
        logger.warning("while the server ended after a failure:", exc_info=True)


def _close_logs(server: DeepMelissaServer) -> None:
    if server._tb_logger is None:
        return
    if server._receiver is not None:
        server._monitor_reception(server._receiver.counters())
    server._tb_logger.close()
    if server.dl_config["convert_log_to_df"] and not server._tb_logger.disable:
        convert_tb_logs_to_df(server.rank)


def _close_receiver(server: DeepMelissaServer) -> None:
    server._is_receiving = False
    if server._receiver is not None:
        server._receiver.close()
        forward_extension_log()
