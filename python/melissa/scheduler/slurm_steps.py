"""The slurm scheduler inside an allocation: each job is a step of it, run by an ``srun`` of this machine."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence

from melissa.scheduler.arguments import JobOptions, names_any
from melissa.scheduler.job import Job, JobKind, JobRequest
from melissa.scheduler.local import LocalScheduler
from melissa.scheduler.slurm import (
    KILL_ON_BAD_EXIT,
    LAUNCHERS,
    CommandError,
    is_srun,
    run_command,
    slurm_ranks,
    words,
)
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
        wanted = list(jobs)
        running = [job for job in wanted if job.is_alive]
        told = self._tell_steps(running) if grace > 0 else []
        self._end(told, grace, told=True)
        self._end([job for job in running if job not in told], grace, told=False)

    def _tell_steps(self, jobs: Sequence[Job]) -> list[Job]:
        """Send SIGTERM to the tasks of jobs; return those that have a step, and so have got it."""
        if not jobs:
            return []
        try:
            lines = run_command(
                ["squeue", "-h", "-s", "-j", os.environ["SLURM_JOB_ID"], "-O", "StepID:40,StepName:200"]
            )
            steps = {words[1]: words[0] for words in map(str.split, lines.splitlines()) if len(words) == 2}
            found = {job: steps[name] for job in jobs if (name := self._step_name(job.request)) in steps}
            if found:
                run_command(["scancel", "--quiet", "--signal=TERM", *found.values()])
        except CommandError as error:
            logger.warning(f"steps cannot be told to end, so their tasks are killed: {error}")
            return []
        return list(found)

    def close(self, grace: float) -> None:
        """End every job that is left, as `cancel` does, and wait for that."""
        deadline = time.monotonic() + grace
        self.cancel(list(self._jobs.values()), grace)
        while self._jobs and time.monotonic() < deadline:
            time.sleep(0.05)
            self.poll([])
        super().close(0.0)

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
