"""The local scheduler: jobs are plain processes of this machine, under a small supervisor."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from melissa.scheduler import supervisor
from melissa.scheduler.arguments import JobOptions
from melissa.scheduler.job import Job, JobKind, JobRequest, State
from melissa.scheduler.scheduler import Scheduler, SchedulerError
from melissa.utility.addresses import LOOPBACK
from melissa.utility.process import describe_exit

logger = logging.getLogger("melissa")

_SEND_TIMEOUT = 30.0
_CLOSE_TIMEOUT = 15.0


class LocalScheduler(Scheduler):
    """Runs jobs as processes of this machine; they all end when this process does, however it ends."""

    name = "local"
    wants_arguments = False

    def __init__(self, options: Mapping[JobKind, JobOptions] | None = None) -> None:
        """Make a scheduler; nothing runs before `start`."""
        super().__init__(options)
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._received = b""
        self._jobs: dict[int, Job] = {}
        self._remains: set[int] = set()  # jobs that have ended, and whose last process has not
        self._submitted = 0

    def start(self, keep_open: Sequence[int] = ()) -> None:
        """Start the supervisor, in its own session: Ctrl-C in the terminal reaches the launcher alone."""
        self._socket, other = socket.socketpair()
        with other:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(supervisor.__file__))],
                stdin=other.fileno(),
                start_new_session=True,
                pass_fds=tuple(keep_open),
            )
        self._socket.setblocking(False)

    def launcher_host(self) -> str:
        """Return the loopback address: all jobs run here."""
        return LOOPBACK

    @classmethod
    def nb_ranks(cls, options: JobOptions) -> int | None:
        """Return 1: a job is one process."""
        return 1

    @classmethod
    def job_limit(cls, options: Mapping[JobKind, JobOptions]) -> int:
        """Return one for each core that this process may use, and one more for the server."""
        return len(os.sched_getaffinity(0)) + 1

    def _command_line(self, request: JobRequest) -> list[str]:
        """Return what the supervisor runs for a request."""
        return [*self._options[request.kind].wrapper, *request.command]

    def submit(self, request: JobRequest) -> Job:
        """Have the supervisor start a process, the leader of its own group."""
        job = Job(request)
        self._submitted += 1
        self._jobs[self._submitted] = job
        self._command(
            command="start",
            job=self._submitted,
            argv=self._command_line(request),
            environment=dict(request.environment),
            directory=str(request.directory),
            stdout=None if request.stdout is None else str(request.stdout),
            stderr=None if request.stderr is None else str(request.stderr),
        )
        return job

    def fileno(self) -> int | None:
        """Return the socket to the supervisor, which reports at once."""
        return None if self._socket is None else self._socket.fileno()

    def poll(self, jobs: Iterable[Job]) -> list[Job]:
        """Take what the supervisor has reported; `SchedulerError` if it has died: its jobs are ended then."""
        assert self._socket is not None
        changed: dict[int, Job] = {}
        is_open = True
        while is_open:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            is_open = bool(data)
            *lines, self._received = (self._received + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line), changed)
        if not is_open:
            raise SchedulerError(self._supervisor_died())
        asked = set(jobs)
        return [job for job in changed.values() if job in asked]

    def cancel(self, jobs: Iterable[Job], grace: float) -> None:
        """Have the supervisor end the processes of `jobs`, their descendants in other sessions included."""
        self._end(jobs, grace, told=False)

    def _end(self, jobs: Iterable[Job], grace: float, *, told: bool) -> None:
        """Have jobs ended; those that were `told` in another way get SIGKILL after `grace`, no SIGTERM."""
        wanted = set(jobs)
        numbers = [number for number, job in self._jobs.items() if job in wanted]
        if numbers:
            self._command(command="end", jobs=numbers, grace=grace, told=told)

    def close(self, grace: float) -> None:
        """Have the supervisor end everything, and wait for that; a hung one is killed, its jobs with it."""
        process, connection = self._supervisor, self._socket
        if process is None or connection is None:
            return
        self._supervisor = self._socket = None
        # Where the supervisor is dead or does not read: the end of the socket says the same.
        with contextlib.suppress(OSError, SchedulerError):
            self._send(connection, {"command": "close", "grace": grace})
        deadline = time.monotonic() + grace + _CLOSE_TIMEOUT
        # It ends the socket when all are gone; what it reports until then nobody waits for any more.
        while _is_ready(connection, select.POLLIN, deadline):
            try:
                if not connection.recv(1 << 16):
                    break
            except OSError:
                break
        connection.close()
        try:
            status = process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if status != 0:
            logger.error(
                f"while it ended all jobs, the supervisor (pid {process.pid}) {describe_exit(status)}"
            )
            self._end_orphans(process.pid)

    @property
    def has_remains(self) -> bool:
        """Whether a process of a job that has ended is still there."""
        return bool(self._remains)

    def _take(self, event: dict[str, Any], changed: dict[int, Job]) -> None:
        number = event["job"]
        if event["event"] == "gone":
            self._remains.discard(number)
            return
        job = self._jobs[number]
        if event["event"] == "started":
            job.state, job.pid = State.RUNNING, event["pid"]
        elif event["event"] == "failed":
            job.state, job.error = State.ERROR, event["error"]
        else:
            job.exit_code, job.error = event["status"], event["error"]
            job.state = State.TERMINATED if job.exit_code == 0 else State.FAILED
            self._remains.add(number)
        changed[number] = job
        if not job.is_alive:
            del self._jobs[number]

    def _command(self, **command: Any) -> None:
        if self._socket is None:
            raise SchedulerError("the local scheduler is not running")
        self._send(self._socket, command)

    def _send(self, connection: socket.socket, command: dict[str, Any]) -> None:
        data = json.dumps(command).encode() + b"\n"
        deadline = time.monotonic() + _SEND_TIMEOUT
        while data:
            try:
                data = data[connection.send(data) :]
            except BlockingIOError:
                if not _is_ready(connection, select.POLLOUT, deadline):
                    raise SchedulerError(
                        f"the supervisor of local jobs has not taken a command for {_SEND_TIMEOUT:g} s"
                    ) from None
            except OSError:
                return  # it has died; what it reported before that is still to be read, `poll` says the rest

    def _supervisor_died(self) -> str:
        """End what the dead supervisor's jobs left; return the text that says so."""
        process, connection = self._supervisor, self._socket
        assert process is not None
        assert connection is not None
        self._supervisor = self._socket = None
        connection.close()
        try:
            status = process.wait(1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        self._end_orphans(process.pid)
        return (
            f"the supervisor of local jobs (pid {process.pid}) {describe_exit(status)}; "
            "without it no job can be watched, so all of them were ended"
        )

    def _end_orphans(self, pid: int) -> None:
        """End the processes of all jobs of a dead supervisor."""
        left = supervisor.end_orphans(pid, {job.pid for job in self._jobs.values() if job.pid is not None})
        if left:
            logger.error(f"these processes could not be ended: {', '.join(map(str, left))}")
        for job in self._jobs.values():
            job.state, job.error = State.FAILED, "its supervisor died"
        self._jobs.clear()


def _is_ready(connection: socket.socket, events: int, deadline: float) -> bool:
    poll = select.poll()
    poll.register(connection, events)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
