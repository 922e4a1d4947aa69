"""The course of a study that trains, from its start to its exit status, whatever comes in between.

    prepare            all that can fail before a client is asked for       (preparation.py)
    online             the server's own list of steps, `_server_online`: data are received, the watermark
                       is waited for, and then
    train              the study's loop, between the clocks' start and `on_train_end`
    agree on a stop    every rank ends with the same status                 (finalizing.py)
    finalize           in order; or after a failure, waiting for nobody     (finalizing.py)

Here stands who catches what. A failure is told to the launcher before anything else is done, and goes on to
the caller of `start`, whose process ends with 1. An interruption (SIGINT or SIGTERM before data are received)
is no failure: the study ends in order, with the interruption's status.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from melissa.server.deep_learning.finalizing import agree_on_stop
from melissa.server.deep_learning.preparation import prepare
from melissa.server.ending import StudyInterrupted

if TYPE_CHECKING:
    from melissa.server.deep_learning.base_dl_server import DeepMelissaServer

__all__ = ["run_study", "train_study"]


def run_study(server: DeepMelissaServer) -> None:
    """Run the study of a server; raises what failed, after it was logged and the launcher was told."""
    try:
        try:
            prepare(server)
            server._server_online()
        except StudyInterrupted as interruption:
            _take_interruption(server, interruption)
        server._server_finalize(agree_on_stop(server))
    except StudyInterrupted:
        raise
    except BaseException as error:
        # SystemExit of the study's class as well: a server that leaves without a word would hang the study.
        server._report_failure(error)
        server._server_finalize(1)
        raise


def _take_interruption(server: DeepMelissaServer, interruption: StudyInterrupted) -> None:
    """End the study in order before it has begun.

    Several ranks cannot, each being somewhere else: they leave, with the interruption's status.
    """
    if server._ranks is not None:
        raise interruption
    server._ending.stop(str(interruption), interruption.status)


def train_study(server: DeepMelissaServer) -> None:
    """Train, once every rank has reached its watermark, until the data end or the study is stopped."""
    server._progress.training_begins()
    server._run_train()
    # A loop of the class's own may have left before the others'.
    server._flags.leave()
    server._progress.training_ends()
    if server._ending.stop_reason is None:
        server._share.end()
    server._on_train_end()
