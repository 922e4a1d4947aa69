"""A job: one process, with its children, that a scheduler starts and watches."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class State(enum.Enum):
    """Where a job stands."""

    WAITING = 0
    """Submitted, not running yet."""
    RUNNING = 1
    TERMINATED = 2
    """Ended with status 0."""
    ERROR = 3
    """Could not be started; `Job.error` says why. No program of it has run."""
    FAILED = 4
    """Ended with another status or by a signal; a cancelled job ends here, too."""

    @property
    def is_final(self) -> bool:
        """Whether a job in this state has ended and stays in it."""
        return self not in (State.WAITING, State.RUNNING)


class JobKind(enum.Enum):
    """What a job is for: schedulers have arguments and wrappers for each kind."""

    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True)
class JobRequest:
    """What a scheduler is asked to run.

    `environment` is added to the launcher's own. Output is appended to `stdout` and `stderr`; where one is
    None nothing is kept of it but the last lines of stderr, which a failed job reports in either case.
    """

    name: str
    command: Sequence[str]
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    stdout: Path | None = None
    stderr: Path | None = None
    kind: JobKind = JobKind.CLIENT


@dataclass(eq=False)
class Job:
    """A submitted job; its scheduler's `poll` keeps the state up to date.

    `pid` is its process on this machine, or `number` what the cluster calls it. `exit_code` is the status of
    an ended job, or minus the number of the signal that ended it; `error` the last lines of its stderr, or
    why it could not be started.
    """

    request: JobRequest
    state: State = State.WAITING
    pid: int | None = None
    number: str | None = None
    exit_code: int | None = None
    error: str = ""

    @property
    def name(self) -> str:
        """The name that the job was submitted under."""
        return self.request.name

    @property
    def identity(self) -> str:
        """What to look for to see it: its process, or its number."""
        return f"process {self.pid}" if self.number is None else f"job {self.number}"

    @property
    def is_alive(self) -> bool:
        """Whether the job has not ended yet."""
        return not self.state.is_final
