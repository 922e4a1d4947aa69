"""Slurm's commands: how one is run, what its failure means, and the threads that wait for slow ones."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from melissa.scheduler.scheduler import SchedulerError

__all__ = ["Command", "CommandError", "Lanes", "Patience"]

logger = logging.getLogger("melissa")

TIMEOUT = 60.0
"""Seconds within which a command must have ended."""

# What Slurm says when it would take the same command later; what it says of mistakes is none of it.
_PASSING = re.compile(
    r"""
    unable\ to\ contact\ slurm\ controller | controller\ not\ responding | in\ standby\ mode
    | socket\ timed\ out | zero\ bytes\ were\ transmitted
    | (communication|message)\ (connection|send|receive|shutdown)\ (failure|error)
    | connection\ (refused|reset|timed\ out) | no\ route\ to\ host | network\ is\ unreachable
    | temporarily\ (unable|unavailable|disabled) | job\ queue\ full
    | unable\ to\ connect\ to\ database
    | SubmitJob
    """,
    re.IGNORECASE | re.VERBOSE,
)
# Among these: the request may have come through, and its answer been lost.
_OPEN = re.compile("timed out|zero bytes|reset|(send|receive|shutdown) (failure|error)", re.IGNORECASE)
_JOB_LIMIT = re.compile("SubmitJob")  # QOSMaxSubmitJobPerUserLimit, AssocMaxSubmitJobLimit, ...
_FULL_MACHINE = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_KILL_TIMEOUT = 5.0
_JOIN_TIMEOUT = 1.0

_Result = TypeVar("_Result")


class CommandError(Exception):
    """A command of Slurm that failed; the text is what it said.

    `is_passing` says that it may go well later; `is_open` that it may all the same have
    done what it was to do.
    """

    def __init__(self, text: str, *, is_passing: bool = False, is_open: bool = False) -> None:
        super().__init__(text)
        self.is_passing = is_passing or is_open
        self.is_open = is_open

    @property
    def is_job_limit(self) -> bool:
        """Whether so many jobs are submitted that Slurm takes a further one only when one has ended."""
        return _JOB_LIMIT.search(str(self)) is not None


class Command:
    """One command; another thread may `kill` it while `run` waits for it."""

    def __init__(self, words: Sequence[str], stdin: str = "") -> None:
        """Take the words of the command line, and what the command reads."""
        self._words = list(words)
        self._stdin = stdin
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._is_killed = False

    def run(self) -> str:
        """Return what the command prints; `CommandError` where it fails or does not answer."""
        name = self._words[0]
        process = self._start(name)
        try:
            stdout, stderr = process.communicate(self._stdin, TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            # One that even SIGKILL does not end, as on a file system that hangs, is left behind.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_KILL_TIMEOUT)
            raise CommandError(f"{name} has not answered within {TIMEOUT:g} s", is_open=True) from None
        if process.returncode == 0:
            return stdout
        if process.returncode < 0:
            how = f"was killed by signal {-process.returncode}"
            raise CommandError(f"{name} {how}: {stderr.strip()}".rstrip(": "), is_open=True)
        said = stderr.strip() or f"ended with status {process.returncode}"
        is_passing = _PASSING.search(said) is not None
        is_open = is_passing and _OPEN.search(said) is not None
        raise CommandError(f"{name}: {said}", is_passing=is_passing, is_open=is_open)

    def _start(self, name: str) -> subprocess.Popen[str]:
        with self._lock:
            if self._is_killed:
                raise CommandError(f"{name} was not run", is_passing=True)
            try:
                self._process = subprocess.Popen(
                    self._words,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    encoding="utf-8",
                    errors="replace",
                    start_new_session=True,  # Ctrl-C is for the launcher alone
                )
            except OSError as error:
                is_passing = error.errno in _FULL_MACHINE
                raise CommandError(f"{name}: {error.strerror}", is_passing=is_passing) from None
            return self._process

    def kill(self) -> None:
        """End the command, or keep it from being run."""
        with self._lock:
            self._is_killed = True
            if self._process is not None and self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)


class _Lane:
    """A thread that does one work after another."""

    def __init__(self, name: str, done: Callable[[Callable[[], None]], None]) -> None:
        self._wanted: queue.SimpleQueue[Callable[[], Callable[[], None]] | None] = queue.SimpleQueue()
        self._done = done
        self.thread = threading.Thread(target=self._serve, name=f"melissa-{name}", daemon=True)
        self.thread.start()

    def put(self, work: Callable[[], Callable[[], None]] | None) -> None:
        self._wanted.put(work)

    def _serve(self) -> None:
        while (work := self._wanted.get()) is not None:
            self._done(work())


class Lanes:
    """Threads that wait for commands, so that their caller does not: a lane for each kind, each in order.

    What follows a command is no affair of these threads: it is done by the thread that calls `take`.
    `fileno` is readable when there is something to take.
    """

    def __init__(self, *names: str) -> None:
        """Start a lane of each name."""
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._done: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lanes = {name: _Lane(name, self._put) for name in names}

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is something to take."""
        return self._reader.fileno()

    def run(
        self, lane: str, work: Callable[[], _Result], then: Callable[[_Result | CommandError], None]
    ) -> None:
        """Have `work` done in a lane; `take` calls `then` with its result or its `CommandError`."""

        def serve() -> Callable[[], None]:
            result: _Result | CommandError
            try:
                result = work()
            except CommandError as error:
                result = error
            except BaseException as error:
                return _raiser(error)  # a defect: it ends the study in the thread that takes
            return lambda: then(result)

        self._lanes[lane].put(serve)

    def take(self) -> None:
        """Do what follows the works that are done; raises what that raises."""
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass
        while True:
            try:
                follow = self._done.get_nowait()
            except queue.Empty:
                return
            follow()

    def wake(self) -> None:
        """Make `fileno` readable."""
        # When it is full it is readable.
        with contextlib.suppress(BlockingIOError):
            self._writer.send(b"\0")

    def wait(self, timeout: float) -> None:
        """Wait until there is something to take, `timeout` seconds at most."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        poll.poll(timeout * 1000)

    def close(self) -> None:
        """End the lanes after what they do now; one that hangs is left to the end of this process."""
        for lane in self._lanes.values():
            lane.put(None)
        deadline = time.monotonic() + _JOIN_TIMEOUT
        for lane in self._lanes.values():
            lane.thread.join(max(0.0, deadline - time.monotonic()))
        if not any(lane.thread.is_alive() for lane in self._lanes.values()):
            self._reader.close()
            self._writer.close()

    def _put(self, follow: Callable[[], None]) -> None:
        self._done.put(follow)
        self.wake()


def _raiser(error: BaseException) -> Callable[[], Any]:
    def fail() -> None:
        raise error

    return fail


class Patience:
    """Bears failures that may pass: a warning at once, at most one a minute then, in the end an error."""

    LIMIT = 900.0
    """Seconds after which the study ends: it may be started anew."""
    WARNING_PERIOD = 60.0

    def __init__(self, what: str) -> None:
        """Begin with no failure; `what` says what does not go on."""
        self._what = what
        self._since: float | None = None
        self._counts_from = 0.0
        self._next_warning = 0.0

    def bear(self, error: CommandError, *, counts: bool = True) -> None:
        """Take one more failure; `SchedulerError` after `LIMIT` seconds of failures that count."""
        now = time.monotonic()
        if self._since is None:
            self._since = self._counts_from = now
        if not counts:
            self._counts_from = now
        if now - self._counts_from > self.LIMIT:
            raise SchedulerError(
                f"{self._what}, for {now - self._since:.0f} s, so the study ends (started again, it goes "
                f"on): {error}"
            )
        if now >= self._next_warning:
            self._next_warning = now + self.WARNING_PERIOD
            logger.warning(f"{self._what}, for {now - self._since:.0f} s now: {error}")

    def end(self) -> None:
        """Take note that it goes well."""
        self._since = None
