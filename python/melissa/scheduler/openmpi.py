"""The openmpi scheduler: server and clients are run by ``mpiexec``, which is a process of this machine."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping, Sequence

from melissa.scheduler.arguments import JobOptions, count_option, names_any
from melissa.scheduler.job import JobKind, JobRequest
from melissa.scheduler.local import LocalScheduler
from melissa.utility.addresses import LOOPBACK, host_name

_COUNTS = ("-n", "--n", "-np", "--np", "-c", "--ntasks")
_COUNTS_PER_NODE = ("-N", "-npernode", "--npernode", "-npersocket", "--npersocket", "-ppn", "-perhost")
_HOSTS = ("-H", "-host", "--host", "-hosts", "-hostfile", "--hostfile", "-machinefile", "--machinefile", "-f")
_BINDINGS = ("--bind-to", "-bind-to", "--map-by", "-map-by", "--rankfile", "-rf", "--cpu-set", "--cpu-list")
_LAUNCHERS = ("mpiexec", "mpirun", "prterun", "orterun", "mpiexec.hydra")
# Where batch systems tell mpiexec the machines of an allocation.
_NODE_FILES = ("PBS_NODEFILE", "OAR_NODEFILE", "LSB_DJOB_HOSTFILE", "PE_HOSTFILE")
# So that a rank on another machine finds the programs and modules that one on this machine would find.
_SEARCH_PATHS = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH")


class OpenMpiScheduler(LocalScheduler):
    """Runs each job as ``mpiexec ARGUMENTS COMMAND``, under the supervisor of local jobs.

    The supervisor knows the ranks as descendants of ``mpiexec`` or, once that has died, by a variable in
    their environment. MPICH's ``mpiexec`` serves as well as that of Open MPI.
    """

    name = "openmpi"
    wants_arguments = True

    def launcher_host(self) -> str:
        """Return the loopback address, or this machine's name where an argument names machines."""
        return LOOPBACK if all(map(_stays_here, self._options.values())) else host_name()

    @classmethod
    def nb_ranks(cls, options: JobOptions) -> int | None:
        """Return the number that ``-n`` gives, 1 without; None where only numbers per node are given."""
        if (count := count_option(options.arguments, _COUNTS)) is not None:
            return count
        by_node = any(argument.startswith("ppr:") for argument in options.arguments)
        return None if by_node or names_any(options.arguments, _COUNTS_PER_NODE) else 1

    @classmethod
    def job_limit(cls, options: Mapping[JobKind, JobOptions]) -> int:
        """Return as many as keep this machine's cores busy; the general limit where machines are named."""
        client = options[JobKind.CLIENT]
        if not _stays_here(client):
            return super(LocalScheduler, cls).job_limit(options)
        cores = len(os.sched_getaffinity(0))
        return max(1, cores // (cls.nb_ranks(client) or 1)) + 1

    def _command_line(self, request: JobRequest) -> list[str]:
        options = self._options[request.kind]
        launcher, wrapper = options.launched_by(_LAUNCHERS, "mpiexec")
        arguments = list(options.arguments)
        if self.nb_ranks(options) == 1 and count_option(arguments, _COUNTS) is None:
            arguments += ["-n", "1"]  # without it mpiexec starts one for each core
        if _is_open_mpi(launcher[0]):
            # Each mpiexec would bind its first rank to the first core, and so would that of the next job.
            if not names_any(arguments, _BINDINGS):
                arguments += ["--bind-to", "none"]
            arguments += _environment_options(request.environment, arguments)
        return [*launcher, *arguments, *wrapper, *request.command]


def _stays_here(options: JobOptions) -> bool:
    """Say whether all ranks run on this machine: no other is named, nor given by a batch system."""
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    is_given_others = nodes != "1" or any(name in os.environ for name in _NODE_FILES)
    return not is_given_others and not names_any(options.arguments, _HOSTS)


def _environment_options(environment: Mapping[str, str], arguments: Sequence[str]) -> list[str]:
    """Return Open MPI's options that hand variables on to ranks on other machines."""
    names = [*environment, *(name for name in _SEARCH_PATHS if name in os.environ)]
    given = {argument.partition("=")[0] for argument in arguments}
    return [word for name in names if name not in given for word in ("-x", name)]


@functools.cache
def _is_open_mpi(launcher: str) -> bool:
    """Say whether an ``mpiexec`` is Open MPI's; MPICH's kind hands on the environment, and binds nothing.

    One that cannot be run or asked counts as one of them: that it fails as a job says why.
    """
    try:
        told = subprocess.run([launcher, "--version"], capture_output=True, text=True, timeout=30.0)
    except (OSError, subprocess.SubprocessError):
        return False
    return any(name in told.stdout for name in ("Open MPI", "OpenRTE", "PRTE"))
