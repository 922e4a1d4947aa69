"""Scalars on their way into a log: who logs them leaves them here, and a thread writes them soon after."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["ScalarQueue"]


class ScalarQueue:
    """Takes scalars in well under a microsecond each, without a lock that the writing thread may hold.

    TensorBoard's writers hand every event to a thread of theirs at once: a training loop that logs a loss per
    batch waits for the interpreter's lock then, for milliseconds where solvers share the cores.

    Parameters
    ----------
    write
        Called with tag, value, step and time of each scalar, in order, from the queue's thread or from
        `write_out`. What it raises is raised by the next call of `put` or `close`.
    """

    PERIOD = 1.0  # seconds for which a scalar waits at most
    MOST = 10_000  # scalars that wait at most: who logs more writes them out

    def __init__(self, write: Callable[[str, float, int, float], None]) -> None:
        self._write = write
        self._waiting: deque[tuple[str, float, int, float]] = deque()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def put(self, tag: str, value: float, step: int) -> None:
        """Leave a scalar, as of now."""
        if self._error is not None:
            raise self._error
        self._waiting.append((tag, value, step, time.time()))
        if self._thread is None:
            self._start()
        if len(self._waiting) >= self.MOST:
            self.write_out()

    def write_out(self) -> None:
        """Write all scalars that wait; returns when they are written."""
        with self._lock:
            while self._waiting:
                self._write(*self._waiting.popleft())

    def close(self) -> None:
        """Write what is left, and end the thread."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        self.write_out()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="melissa-scalars", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ended.wait(self.PERIOD):
                self.write_out()
        except BaseException as error:
            self._error = error
