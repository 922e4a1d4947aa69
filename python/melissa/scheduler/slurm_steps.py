"""The slurm scheduler inside an allocation: each job is a step of it, run by an ``srun`` of this machine."""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Iterable, Mapping, Sequence

from melissa.scheduler.arguments import JobOptions, names_any
from melissa.scheduler.job import Job, JobKind, JobRequest
from melissa.scheduler.local import LocalScheduler
from melissa.scheduler.slurm import KILL_ON_BAD_EXIT, LAUNCHERS, is_srun, slurm_ranks, words
from melissa.scheduler.slurm_commands import Command, CommandError, Lanes
from melissa.utility.addresses import host_name

logger = logging.getLogger("melissa")

_SHARINGS = ("--exact", "--exclusive", "--overlap", "--oversubscribe", "-s")


def in_allocation(environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether this process stands in an allocation of Slurm."""
    return "SLURM_JOB_ID" in environment


class SlurmStepScheduler(LocalScheduler):
    """Runs each job as ``srun ARGUMENTS COMMAND``, under the supervisor of local jobs.

    Slurm ends the tasks of an ``srun`` that is gone. Steps that find no free cores wait for them.
    """

    name = "slurm"
    wants_arguments = True
    END_TIMEOUT = 60.0

    def __init__(self, options: Mapping[JobKind, JobOptions] | None = None) -> None:
        """Make a scheduler; nothing runs before `start`."""
        super().__init__(options)
        self._lanes: Lanes | None = None
        self._news: select.epoll | None = None

    def start(self, keep_open: Sequence[int] = ()) -> None:
        """Start the supervisor, and the thread that waits for Slurm."""
        super().start(keep_open)
        assert self._socket is not None
        self._lanes = Lanes("steps")
        self._news = select.epoll()
        self._news.register(self._socket, select.EPOLLIN)
        self._news.register(self._lanes, select.EPOLLIN)

    def fileno(self) -> int | None:
        """Return what is readable when the supervisor or Slurm has told something."""
        return None if self._news is None else self._news.fileno()

    def poll(self, jobs: Iterable[Job]) -> list[Job]:
        """Take what Slurm has told of steps, and what the supervisor has reported."""
        if self._lanes is not None:
            self._lanes.take()
        return super().poll(jobs)

    def launcher_host(self) -> str:
        """Return this machine's name: steps may run on others."""
        return host_name()

    @classmethod
    def nb_ranks(cls, options: JobOptions) -> int | None:
        """Return the number of tasks; those of the allocation are for all jobs together."""
        return slurm_ranks(options)

    @classmethod
    def job_limit(cls, options: Mapping[JobKind, JobOptions]) -> int:
        """Return as many as there is room for: the allocation's tasks, less the server's, by a client's."""
        tasks = os.environ.get("SLURM_NTASKS") or os.environ.get("SLURM_CPUS_ON_NODE", "")
        if not tasks.isdecimal():
            return super(LocalScheduler, cls).job_limit(options)
        ranks = {kind: cls.nb_ranks(options[kind]) or 1 for kind in JobKind}
        return max(1, (int(tasks) - ranks[JobKind.SERVER]) // ranks[JobKind.CLIENT]) + 1

    def _step_name(self, request: JobRequest) -> str:
        # Steps of another launcher in the same allocation are not this one's.
        return f"melissa-{os.getpid()}-{request.name}"

    def cancel(self, jobs: Iterable[Job], grace: float) -> None:
        """End jobs: Slurm hands SIGTERM to their tasks, which an srun that gets it itself kills at once."""
        running = [job for job in jobs if job.is_alive]
        if not running or grace <= 0 or self._lanes is None:
            self._end(running, grace, told=False)
            return
        names = {job: self._step_name(job.request) for job in running}
        self._lanes.run("steps", lambda: _tell_steps(names), lambda told: self._told(running, told, grace))

    def _told(self, jobs: Sequence[Job], told: list[Job] | CommandError, grace: float) -> None:
        """Have the supervisor do the rest: SIGKILL for jobs that were `told` to end, all for the others."""
        if isinstance(told, CommandError):
            logger.warning(f"steps cannot be told to end, so their tasks are killed: {told}")
            told = []
        self._end(told, grace, told=True)
        self._end([job for job in jobs if job not in told], grace, told=False)

    def close(self, grace: float) -> None:
        """End every job that is left, as `cancel` does, and wait for that."""
        deadline = time.monotonic() + grace
        self.cancel(list(self._jobs.values()), grace)
        while self._jobs and time.monotonic() < deadline:
            time.sleep(0.05)
            self.poll([])
        super().close(0.0)
        if self._lanes is not None and self._news is not None:
            self._lanes.close()
            self._news.close()
            self._lanes = self._news = None

    def _command_line(self, request: JobRequest) -> list[str]:
        options = self._options[request.kind]
        launcher, wrapper = options.launched_by(LAUNCHERS, "srun")
        arguments = words(options.arguments)
        if is_srun(launcher):
            arguments = [f"--ntasks={self.nb_ranks(options)}", "--export=ALL", *arguments]
            arguments.append(f"--job-name={self._step_name(request)}")
            launcher = (launcher[0], KILL_ON_BAD_EXIT, *launcher[1:])
            if not names_any((*launcher, *arguments), _SHARINGS):
                arguments.insert(0, "--exact")  # its own cores and no others, so that steps run side by side
        return [*launcher, *arguments, *wrapper, *request.command]


def _tell_steps(names: Mapping[Job, str]) -> list[Job]:
    """Send SIGTERM to the tasks of jobs, by their steps' names; return those that have one, and got it."""
    columns = ["-O", "StepID:40,StepName:200"]
    lines = Command(["squeue", "-h", "-s", "-j", os.environ["SLURM_JOB_ID"], *columns]).run()
    steps = {words[1]: words[0] for words in map(str.split, lines.splitlines()) if len(words) == 2}
    found = {job: steps[name] for job, name in names.items() if name in steps}
    if found:
        Command(["scancel", "--quiet", "--signal=TERM", *found.values()]).run()
    return list(found)
