"""The supervisor of local jobs: a small process that starts them, and ends them when the launcher is gone.

Run as ``python -I -S supervisor.py``, with a socket to the launcher as standard input; it imports nothing
of Melissa. Both sides speak JSON lines::

    {"command": "start", "job": 1, "argv": [...], "environment": {...}, "directory": PATH,
     "stdout": PATH | null, "stderr": PATH | null}
    {"command": "end", "jobs": [1, ...], "grace": seconds between SIGTERM and SIGKILL,
     "told": true where they have got SIGTERM in another way, and get SIGKILL alone from here}
    {"command": "close", "grace": seconds}                       everything is ended, then the socket closes

    {"event": "started", "job": 1, "pid": 4711}
    {"event": "failed", "job": 1, "error": "why it could not be started"}
    {"event": "exited", "job": 1, "status": -9, "error": "the last bytes of its stderr"}
    {"event": "gone", "job": 1}                                  after that: no process of it is left

Each job is the leader of a process group of its own. A job's processes are its group and all their
descendants, those with another session or group, too: this process adopts orphans of its descendants (a
"child subreaper"), and knows whose they are by an environment variable. What outlives a job's first process
is ended.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

JOB_VARIABLE = "MELISSA_JOB"
"""Environment variable that marks the processes of a job: ``<pid of the supervisor>/<job>``."""

GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL where nobody says otherwise."""

_END_LIMIT = 10.0
"""Seconds after which processes that not even SIGKILL ends (in a hung file system, say) are left alone."""
_TAIL_SIZE = 1 << 14
"""Bytes of a job's stderr that are kept for its failure."""
_SWEEP_PAUSE = 0.1

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def _processes() -> dict[int, tuple[int, int]]:
    """Return parent and process group of every live process that can be seen."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # The second field, the program's name in brackets, may itself have blanks and brackets.
                state, parent, group = file.read().rpartition(b")")[2].split()[:3]
        except OSError:
            continue  # it has ended meanwhile
        if state not in b"ZX":
            found[int(name)] = int(parent), int(group)
    return found


def _descendants(processes: dict[int, tuple[int, int]], roots: Iterable[int]) -> Iterator[int]:
    """Yield `roots` and all that descend from them."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in processes.items():
        children.setdefault(parent, []).append(pid)
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, ())


def _mark(pid: int) -> str | None:
    """Return the mark that a process was started with; None when it has none or hides it."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:
        return None
    prefix = JOB_VARIABLE.encode() + b"="
    return next((os.fsdecode(entry[len(prefix) :]) for entry in variables if entry.startswith(prefix)), None)


def _marked_job(pid: int) -> int | None:
    """Return the number of the job that a process was marked with."""
    number = (_mark(pid) or "").partition("/")[2]
    return int(number) if number.isdecimal() else None


def _send_signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
            if number == signal.SIGTERM:
                os.kill(pid, signal.SIGCONT)  # a stopped process ends only when it goes on
        except (ProcessLookupError, PermissionError):
            continue  # ended meanwhile, or of another user (a set-user-ID program)


def _end_all(find: Callable[[], list[int]], grace: float) -> list[int]:
    """End the processes that `find` finds: SIGTERM, SIGKILL after `grace` seconds; return those that stay."""
    start = time.monotonic()
    told: set[int] = set()
    while left := find():
        waited = time.monotonic() - start
        if waited > grace + _END_LIMIT:
            return left
        if waited >= grace:
            _send_signal(left, signal.SIGKILL)
        else:
            _send_signal(set(left) - told, signal.SIGTERM)
            told.update(left)
        time.sleep(0.02)
    return []


def end_orphans(supervisor: int, groups: set[int], grace: float = GRACE) -> list[int]:
    """End what the jobs of a dead supervisor left behind; return the processes that stay.

    `supervisor` was its process id, `groups` are the process groups of the jobs that were running then. The
    kernel has killed the leaders already; the others are found by their group and by their mark.
    """

    def find() -> list[int]:
        processes = _processes()
        mark = f"{supervisor}/"
        roots = [
            pid
            for pid, (_, group) in processes.items()
            if group in groups or (_mark(pid) or "").startswith(mark)
        ]
        return list(set(_descendants(processes, roots)) - {os.getpid()})

    return _end_all(find, grace)


class _Job:
    """A started job: its first process, and what is kept of its stderr."""

    def __init__(self, number: int, process: subprocess.Popen[bytes]) -> None:
        self.number = number
        self.process = process
        self.stderr: str | None = None  # the file, or None where the pipe is all there is
        self.stderr_start = 0  # bytes that earlier attempts left in the file
        self.pipe: int | None = None
        self._tail = b""

    def keep(self, data: bytes) -> None:
        """Keep the end of what came through the pipe."""
        self._tail = (self._tail + data)[-_TAIL_SIZE:]

    def tail(self) -> str:
        """Return the last bytes of this job's stderr."""
        if self.stderr is not None:
            try:
                with open(self.stderr, "rb") as file:
                    end = file.seek(0, os.SEEK_END)
                    file.seek(max(min(self.stderr_start, end), end - _TAIL_SIZE))
                    self._tail = file.read(_TAIL_SIZE)
            except OSError as error:
                return f"(its stderr cannot be read from {self.stderr}: {error.strerror})"
        return self._tail.decode(errors="replace")


class Supervisor:
    """Starts jobs, reports their ends, ends them with all their descendants."""

    def __init__(self, launcher: socket.socket) -> None:
        """Take over a socket to the launcher; its end is the launcher's death."""
        self._launcher = launcher
        self._launcher.setblocking(False)
        self._commands = b""
        self._events = b""
        self._running: dict[int, _Job] = {}  # by the process id of the leader
        self._groups: dict[int, int] = {}  # process group -> job, for those that run or are ending
        self._ending: dict[int, float] = {}  # job -> when SIGKILL follows SIGTERM
        self._exited: set[int] = set()  # jobs whose end is told, of which something may be left
        self._told: set[int] = set()  # processes that were sent SIGTERM
        self._spared: set[int] = set()  # jobs that are not sent it
        self._next_sweep = 0.0
        self._close_grace: float | None = None
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Serve the launcher until it closes the socket or goes; return the exit status."""
        wakeup = self._catch_signals()
        self._selector.register(self._launcher, selectors.EVENT_READ, self._on_launcher)
        self._selector.register(wakeup, selectors.EVENT_READ, lambda _: self._on_signal(wakeup))
        while self._close_grace is None:
            timeout = max(0.0, self._next_sweep - time.monotonic()) if self._ending else None
            for key, mask in self._selector.select(timeout):
                key.data(mask)
            self._reap()
            if self._ending and time.monotonic() >= self._next_sweep:
                self._sweep()
        left = _end_all(self._all_descendants, self._close_grace)
        if left:
            print(f"melissa: these processes could not be ended: {left}", file=sys.stderr)
        return 1 if left else 0

    def _catch_signals(self) -> socket.socket:
        """Turn signals into bytes on the socket that is returned."""
        wakeup, written = socket.socketpair()
        wakeup.setblocking(False)
        written.setblocking(False)
        signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
        self._written = written
        # Handlers that do nothing, instead of SIG_IGN, which the jobs would inherit. Ctrl-C is the
        # launcher's.
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        return wakeup

    def _on_signal(self, wakeup: socket.socket) -> None:
        if signal.SIGTERM in wakeup.recv(4096):
            self._close_grace = GRACE

    def _on_launcher(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush()
        if not mask & selectors.EVENT_READ:
            return
        try:
            data = self._launcher.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close_grace = GRACE
            return
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, command: dict[str, Any]) -> None:
        name = command["command"]
        if name == "start":
            self._start(command)
        elif name == "end":
            deadline = time.monotonic() + command["grace"]
            for job in command["jobs"]:
                self._ending[job] = min(deadline, self._ending.get(job, deadline))
            if command["told"]:
                self._spared.update(command["jobs"])
            self._next_sweep = 0.0
        elif name == "close":
            self._close_grace = command["grace"]
        else:
            raise ValueError(f"unknown command {name!r}")

    def _start(self, command: dict[str, Any]) -> None:
        number, argv, directory = command["job"], command["argv"], command["directory"]
        opened: list[int] = []
        pipe: int | None = None
        try:
            stdout = _open_output(command["stdout"], opened)
            if command["stderr"] is None:
                pipe, stderr = os.pipe()
                opened.append(stderr)
            else:
                stderr = _open_output(command["stderr"], opened)
            size = os.fstat(stderr).st_size
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=directory,
                env=os.environ | command["environment"] | {JOB_VARIABLE: f"{os.getpid()}/{number}"},
                process_group=0,
                preexec_fn=_die_with(os.getpid()),
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            if pipe is not None:
                os.close(pipe)
            self._tell({"event": "failed", "job": number, "error": _explain(error, argv[0], directory)})
            return
        finally:
            for descriptor in opened:
                os.close(descriptor)
        job = _Job(number, process)
        job.stderr, job.stderr_start, job.pipe = command["stderr"], size, pipe
        self._running[process.pid] = job
        self._groups[process.pid] = number
        if pipe is not None:
            os.set_blocking(pipe, False)
            self._selector.register(pipe, selectors.EVENT_READ, functools.partial(self._read_stderr, job))
        self._tell({"event": "started", "job": number, "pid": process.pid})

    def _read_stderr(self, job: _Job, _: int = 0) -> bool:
        """Read from a job's pipe; False when nothing more is there now, or ever."""
        if job.pipe is None:
            return False
        try:
            data = os.read(job.pipe, 1 << 16)
        except BlockingIOError:
            return False
        job.keep(data)
        if not data:
            self._selector.unregister(job.pipe)
            os.close(job.pipe)
            job.pipe = None
        return bool(data)

    def _reap(self) -> None:
        """Collect ended children, jobs and adopted orphans alike, and report the jobs."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            job = self._running.pop(pid, None)
            if job is None:
                continue
            job.process.returncode = os.waitstatus_to_exitcode(status)
            # What is left in its pipe; should a child of it write for ever, no more than that.
            for _ in range(16):
                if not self._read_stderr(job):
                    break
            self._tell(
                {"event": "exited", "job": job.number, "status": job.process.returncode, "error": job.tail()}
            )
            self._exited.add(job.number)
            self._spared.discard(job.number)
            # What it left running goes, too.
            deadline = time.monotonic() + GRACE
            self._ending[job.number] = min(deadline, self._ending.get(job.number, deadline))

    def _sweep(self) -> None:
        """Signal the processes of the jobs that are to end; forget those jobs of which nothing is left."""
        begin = time.monotonic()
        processes = _processes()
        owned: dict[int, list[int]] = {number: [] for number in self._ending}
        for pid, (parent, group) in processes.items():
            if parent != os.getpid():
                continue
            owner = self._groups.get(group) or _marked_job(pid)
            if owner in owned:
                owned[owner] += _descendants(processes, [pid])
        for number, pids in owned.items():
            if not pids:
                del self._ending[number]
                self._groups = {group: job for group, job in self._groups.items() if job != number}
                if number in self._exited:
                    self._exited.remove(number)
                    self._tell({"event": "gone", "job": number})
            elif begin >= self._ending[number]:
                _send_signal(pids, signal.SIGKILL)
            elif number not in self._spared:
                _send_signal(set(pids) - self._told, signal.SIGTERM)
                self._told.update(pids)
        self._told &= processes.keys()
        # On a machine with very many processes a look at all of them is not free: at most a tenth of one
        # core.
        cost = time.monotonic() - begin
        self._next_sweep = begin + max(_SWEEP_PAUSE, 10 * cost)

    def _all_descendants(self) -> list[int]:
        self._reap()
        self._flush()
        return [pid for pid in _descendants(_processes(), [os.getpid()]) if pid != os.getpid()]

    def _tell(self, event: dict[str, Any]) -> None:
        self._events += json.dumps(event).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        """Send what the launcher takes now, keep the rest: a slow launcher must not stop the supervisor."""
        try:
            while self._events:
                self._events = self._events[self._launcher.send(self._events) :]
        except BlockingIOError:
            pass
        except OSError:
            self._events = b""  # the launcher is gone: its end of the socket says so, too
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._events else 0)
        if self._selector.get_key(self._launcher).events != wanted:
            self._selector.modify(self._launcher, wanted, self._on_launcher)


def _open_output(path: str | None, opened: list[int]) -> int:
    if path is None:
        return subprocess.DEVNULL
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    opened.append(descriptor)
    return descriptor


def _die_with(supervisor: int) -> Callable[[], None]:
    """Make what a job does before its program starts: ask to be killed when the supervisor is."""

    def prepare() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)  # it died before the line above

    return prepare


def _explain(error: Exception, program: str, directory: str) -> str:
    if not isinstance(error, OSError):
        return f"cannot start {program}: {error}"
    if error.filename == directory:
        return f"cannot start {program} in {directory}: {error.strerror}"
    if error.filename == program:
        is_there = error.errno == errno.ENOENT and os.path.exists(os.path.join(directory, program))
        hint = " (the file is there, but not the interpreter that its first line names)" if is_there else ""
        return f"cannot start {program}: {error.strerror}{hint}"
    return f"cannot start {program}: {error.filename or 'its process'}: {error.strerror}"


def main() -> int:
    """Supervise the jobs of the launcher whose socket is the standard input."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    launcher = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    return Supervisor(launcher).run()


if __name__ == "__main__":
    sys.exit(main())
