"""What every scheduler can do. Each one is a file beside this one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from melissa.exceptions import FatalError
from melissa.scheduler.arguments import JobOptions
from melissa.scheduler.job import Job, JobKind, JobRequest


class SchedulerError(FatalError):
    """The scheduler itself cannot go on; a job that fails is none."""


class Scheduler(ABC):
    """Starts jobs, tells how they are, ends them.

    One thread calls its methods. But for `close` they wait for nothing: neither for jobs, nor for the
    commands of a cluster.
    """

    name: ClassVar[str]
    """How `launcher_config.scheduler` calls it."""
    wants_arguments: ClassVar[bool]
    """Whether raw arguments mean anything to it."""
    JOB_LIMIT: ClassVar[int] = 1000
    END_TIMEOUT: ClassVar[float] = 5.0
    """Seconds after the grace of `cancel` within which jobs end."""

    def __init__(self, options: Mapping[JobKind, JobOptions] | None = None) -> None:
        """Take what the configuration says of each kind of job; nothing runs before `start`."""
        self._options = {kind: (options or {}).get(kind, JobOptions()) for kind in JobKind}

    @classmethod
    @abstractmethod
    def nb_ranks(cls, options: JobOptions) -> int | None:
        """Return how many processes a job with these options has; None where they do not say."""

    @classmethod
    def job_limit(cls, options: Mapping[JobKind, JobOptions]) -> int:
        """Return how many jobs may live at once, the server included, where the configuration is silent."""
        return cls.JOB_LIMIT

    @abstractmethod
    def start(self, keep_open: Sequence[int] = ()) -> None:
        """Make ready for jobs.

        `keep_open` are descriptors that a process which looks after the jobs is to hold for as long as
        there are any: the lock on the output folder.
        """

    @abstractmethod
    def launcher_host(self) -> str:
        """Return the address of this machine at which its jobs reach the launcher."""

    @abstractmethod
    def submit(self, request: JobRequest) -> Job:
        """Submit a job, or queue it for that. That it cannot be started is no exception: it ends in ERROR."""

    @abstractmethod
    def fileno(self) -> int | None:
        """Return a descriptor that is readable when `poll` has news; None when nothing is started."""

    def ask(self) -> None:  # noqa: B027 - a scheduler that hears of every change has nothing to ask for
        """Begin to ask how the jobs are, where nobody tells that by himself: called every `timer_delay`."""

    @abstractmethod
    def poll(self, jobs: Iterable[Job]) -> list[Job]:
        """Take the news of `jobs`; return those that have changed. `SchedulerError` if it cannot go on."""

    @abstractmethod
    def cancel(self, jobs: Iterable[Job], grace: float) -> None:
        """Ask for the end of `jobs`: SIGTERM, SIGKILL `grace` seconds later; `poll` tells when they end."""

    @property
    def has_remains(self) -> bool:
        """Whether processes of jobs that have ended may still be there; `poll` keeps it up to date."""
        return False

    @abstractmethod
    def close(self, grace: float) -> None:
        """End every job that is left, `grace` as in `cancel`; return when they are gone."""
