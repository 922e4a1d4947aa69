"""Signals as something to select on: handlers, which run between any two lines, do nothing themselves."""

from __future__ import annotations

import signal
import socket
import threading
from types import FrameType
from typing import Any

__all__ = ["SignalWatch"]


class SignalWatch:
    """Catches SIGINT, SIGTERM and SIGHUP while it is open, and tells them to whoever reads.

    A SIGHUP that is ignored already (``nohup``) stays ignored. Outside the main thread, where Python does
    not let handlers be set, it catches nothing.
    """

    def __init__(self) -> None:
        """Make the watch; signals are caught from ``__enter__`` on."""
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup_before = -1

    def __enter__(self) -> SignalWatch:
        """Catch signals from now on."""
        if threading.current_thread() is threading.main_thread():
            self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, _let_the_watch_tell)
        return self

    def __exit__(self, *_: object) -> None:
        """Put back what handled the signals before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
        self._reader.close()
        self._writer.close()

    def fileno(self) -> int:
        """A descriptor that is readable when a signal has come."""
        return self._reader.fileno()

    def received(self) -> list[signal.Signals]:
        """Return the signals that came since the last call, in their order."""
        try:
            numbers = self._reader.recv(4096)
        except BlockingIOError:
            return []
        return [signal.Signals(number) for number in numbers if number in set(self._before)]


def _let_the_watch_tell(number: int, frame: FrameType | None) -> None:
    """Do nothing: the number is on the watch's socket already."""
