"""SIGINT and SIGTERM: the first ends the study in order, the second at once; SIGUSR1: a checkpoint."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

from melissa.server.ending import StudyEnding, StudyInterrupted
from melissa.server.ranks.deadline import leave_at_once

__all__ = ["SignalWatch"]

logger = logging.getLogger("melissa")


class SignalWatch:
    """Turns SIGINT and SIGTERM into a stop of the study, SIGUSR1 into a wish; to be made in the main thread.

    A thread reads the descriptor that the interpreter writes signals to, so that a signal counts even while
    the main thread is inside a long call of C. In code that never looks at the ending (imports, constructors)
    the main thread gets `StudyInterrupted` as well. If it cannot take that before the study is attached,
    because it waits inside of MPI or TensorFlow for other ranks, the process ends.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    CHECKPOINT_SIGNAL = signal.SIGUSR1
    GRACE = 3.0
    """Seconds that the main thread has, before the study is attached, to take the exception."""

    def __init__(self) -> None:
        self.give_up: Callable[[StudyInterrupted], object] = lambda interruption: None
        """Called before the process ends by itself."""
        self._is_taken = threading.Event()
        self._ending: StudyEnding | None = None
        self._pending: int | None = None
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        for number in self.SIGNALS:
            signal.signal(number, self._handle)
        signal.signal(self.CHECKPOINT_SIGNAL, lambda number, frame: None)
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="melissa-signals", daemon=True).start()

    def attach(self, ending: StudyEnding) -> None:
        """Stop that study when a signal comes; one that came before counts."""
        self._ending = ending
        if self._pending is not None:
            self._stop(self._pending)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._is_taken.set()
        if self._ending is None or not self._ending.is_looked_at:
            raise StudyInterrupted(f"{signal.Signals(number).name} came", status=128 + number)

    def _watch(self) -> None:
        while data := self._read.recv(64):
            for number in data:
                if number == self.CHECKPOINT_SIGNAL:
                    self._want_checkpoint()
                if number not in self.SIGNALS:
                    continue
                if self._pending is not None:
                    logger.warning(f"a second signal, {signal.Signals(number).name}: the server ends at once")
                    os._exit(128 + number)
                self._pending = number
                self._stop(number)
                if self._ending is None:
                    threading.Thread(target=self._end_if_deaf, args=(number,), daemon=True).start()

    def _end_if_deaf(self, number: int) -> None:
        if self._is_taken.wait(self.GRACE):
            return
        logger.warning(
            f"the main thread is in a call that has not looked for {self.GRACE:g} s: the server ends now"
        )
        self.give_up(StudyInterrupted(f"{signal.Signals(number).name} came", status=128 + number))
        leave_at_once(128 + number)

    def _want_checkpoint(self) -> None:
        if self._ending is None:
            logger.info("SIGUSR1 came before the study has begun: there is nothing to write a checkpoint of")
            return
        if self._ending.has_own_loop:
            logger.info(
                "SIGUSR1 came: nothing follows from it, since this study's train is its own: a checkpoint is "
                "written when that calls checkpoint_state"
            )
            return
        logger.info("SIGUSR1 came: a checkpoint is written after the next batch")
        self._ending.checkpoint_wanted = True

    def _stop(self, number: int) -> None:
        logger.info(
            f"{signal.Signals(number).name} came: the study stops; a second signal ends the server at once"
        )
        if self._ending is not None:
            self._ending.stop(f"{signal.Signals(number).name} came", status=128 + number)
