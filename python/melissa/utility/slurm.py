"""What a task of Slurm knows about itself and its fellows: from its environment alone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from itertools import product

from melissa.exceptions import UnsupportedConfiguration

__all__ = ["SlurmTask", "expand_hostlist"]

# Below the range that systems draw ports of outgoing connections from (32768 and up).
FIRST_PORT, NB_PORTS = 12_000, 20_000


def expand_hostlist(text: str) -> list[str]:
    """Return the names in a list of hosts as Slurm writes it, in its order.

    `ValueError` when the brackets of the list do not match, or hold something else than numbers and ranges.

    >>> expand_hostlist("login,node[01-03,07]")
    ['login', 'node01', 'node02', 'node03', 'node07']
    """
    hosts: list[str] = []
    # Commas outside of brackets separate; those inside are part of a set of numbers.
    for word in re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+|[\[\]]", text):
        parts = re.split(r"\[([^\[\]]*)\]", word.strip())
        if any("[" in part or "]" in part for part in parts):
            raise ValueError(f"the list of hosts {text!r} has a bracket without its other half")
        # What stood in brackets is at the odd places.
        choices = [_numbers(part, text) if i % 2 else [part] for i, part in enumerate(parts)]
        hosts += ["".join(choice) for choice in product(*choices)]
    return hosts


def _numbers(text: str, hostlist: str) -> list[str]:
    """Return the numbers of ``01-03,07``, with their leading zeros."""
    numbers: list[str] = []
    for word in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", word.strip())
        if match is None:
            raise ValueError(
                f"the list of hosts {hostlist!r} has {word!r} in brackets: a number or a range such as 01-03 "
                "was expected"
            )
        first, last = match[1], match[2] or match[1]
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers


@dataclass(frozen=True)
class SlurmTask:
    """One task of a job step: its rank, its number on its node, how many there are, and where.

    `master_addr` and `master_port` are where rank 0 is met: the first host, and a port that follows from the
    numbers of job and step, unless ``MASTER_ADDR`` and ``MASTER_PORT`` stand in the environment.
    """

    rank: int
    local_rank: int
    size: int
    cpus_per_task: int
    hostnames: tuple[str, ...]
    master_addr: str
    master_port: int

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> SlurmTask:
        """Read the environment; `UnsupportedConfiguration` names what is missing outside a task of Slurm."""
        needed = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
        missing = [name for name in needed if name not in environment]
        # The step's nodes: rank 0 is on the first of them, which need not be the first of the job's.
        lists = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
        hostlist = next((environment[name] for name in lists if environment.get(name)), None)
        if hostlist is None:
            missing.append("SLURM_JOB_NODELIST")
        if missing or hostlist is None:
            raise UnsupportedConfiguration(
                f"this process is no task of Slurm: there is no {', no '.join(missing)} in its environment; "
                "start it with srun"
            )

        def number(name: str, default: int | None = None) -> int:
            text = environment.get(name)
            if text is None and default is not None:
                return default
            if text is None or not text.isdecimal():
                raise UnsupportedConfiguration(f"{name} is {text!r}: a number was expected")
            return int(text)

        try:
            hostnames = tuple(expand_hostlist(hostlist))
        except ValueError as error:
            raise UnsupportedConfiguration(str(error)) from error
        job, step = number("SLURM_JOB_ID", 0), number("SLURM_STEP_ID", 0)
        # Neighbouring jobs and the steps of one job (a server that was started again) get different ports.
        port = FIRST_PORT + (job * 7 + step) % NB_PORTS
        return cls(
            rank=number("SLURM_PROCID"),
            local_rank=number("SLURM_LOCALID"),
            size=number("SLURM_NTASKS"),
            cpus_per_task=number("SLURM_CPUS_PER_TASK", 1),
            hostnames=hostnames,
            master_addr=environment.get("MASTER_ADDR") or hostnames[0],
            master_port=number("MASTER_PORT", port),
        )

    @classmethod
    def of_rank(cls, rank: int, nb_ranks: int) -> SlurmTask:
        """Read the environment of a server rank whose study has ``dl_config.setup_slurm_ddp``.

        `UnsupportedConfiguration` outside a task of Slurm, and where MPI counts ranks otherwise.
        """
        try:
            task = cls.read()
        except UnsupportedConfiguration as error:
            raise UnsupportedConfiguration(
                f"dl_config.setup_slurm_ddp is true, but {error}, or set it to false"
            ) from error
        if (task.rank, task.size) != (rank, nb_ranks):
            raise UnsupportedConfiguration(
                f"dl_config.setup_slurm_ddp is true, and Slurm says that this is task {task.rank} of "
                f"{task.size}, but it is server rank {rank} of {nb_ranks}: start the server with srun, with "
                "an --mpi that mpi4py's MPI knows; or set setup_slurm_ddp to false"
            )
        return task

    def publish_master(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Put ``MASTER_ADDR`` and ``MASTER_PORT`` into the environment, where torch and others look."""
        environment["MASTER_ADDR"] = self.master_addr
        environment["MASTER_PORT"] = str(self.master_port)
