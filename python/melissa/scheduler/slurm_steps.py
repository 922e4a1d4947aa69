"""The slurm scheduler inside an allocation: each job is a step of it, run by an ``srun`` of this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping

from melissa.scheduler.arguments import JobOptions, names_any
from melissa.scheduler.job import JobKind, JobRequest
from melissa.scheduler.local import LocalScheduler
from melissa.scheduler.slurm import LAUNCHERS, slurm_ranks, words
from melissa.utility.addresses import host_name

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

    def _command_line(self, request: JobRequest) -> list[str]:
        options = self._options[request.kind]
        launcher, wrapper = options.launched_by(LAUNCHERS, "srun")
        arguments = words(options.arguments)
        if launcher[0].rpartition("/")[2] == "srun":
            arguments = [f"--ntasks={self.nb_ranks(options)}", "--export=ALL", *arguments]
            if not names_any((*launcher, *arguments), _SHARINGS):
                arguments.insert(0, "--exact")  # its own cores and no others, so that steps run side by side
        return [*launcher, *arguments, *wrapper, *request.command]
