"""How the server's ranks talk to each other about training: one process alone, or several under MPI.

The training thread makes every call of a communicator, and no wait in one blocks in MPI: it polls, so that a
failure elsewhere in the process or a signal is noticed.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from melissa.exceptions import ConfigurationFileError

__all__ = [
    "Communicator",
    "MpiProcesses",
    "SingleProcess",
    "make_communicator",
    "number_of_ranks",
    "process_rank",
]

RANKS_VARIABLE = "MELISSA_NB_SERVER_RANKS"


class Communicator(ABC):
    """The ranks of one server: `rank` is this one's number, `size` how many there are.

    Every rank makes each call, in the same order.
    """

    rank: int
    size: int

    @abstractmethod
    def bcast(self, value: Any, root: int = 0) -> Any:
        """Return what rank `root` gave."""

    @abstractmethod
    def allgather(self, value: Any) -> list[Any]:
        """Return what every rank gave, in the order of ranks."""

    @abstractmethod
    def any(self, flag: bool) -> bool:
        """Say whether `flag` is true on some rank."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait until every rank is here."""

    def Get_rank(self) -> int:  # noqa: N802, RUF100  # mpi4py's spelling, which study code uses
        """Return `rank`."""
        return self.rank

    def Get_size(self) -> int:  # noqa: N802, RUF100
        """Return `size`."""
        return self.size

    def Barrier(self) -> None:  # noqa: N802, RUF100
        """Wait as `barrier` does."""
        self.barrier()


class SingleProcess(Communicator):
    """A server of one rank; needs no MPI."""

    rank = 0
    size = 1

    def bcast(self, value: Any, root: int = 0) -> Any:
        """Return `value`."""
        return value

    def allgather(self, value: Any) -> list[Any]:
        """Return a list of `value` alone."""
        return [value]

    def any(self, flag: bool) -> bool:
        """Return `flag`."""
        return bool(flag)

    def barrier(self) -> None:
        """Return at once."""


class MpiProcesses(Communicator):
    """A server whose ranks are the processes of an MPI communicator (COMM_WORLD unless another is given).

    `check` is called while the rank waits for others; what it raises ends the wait.
    """

    POLL_INTERVAL = 0.001  # seconds

    def __init__(self, mpi_comm: Any = None, check: Callable[[], None] | None = None) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self.mpi_comm = MPI.COMM_WORLD if mpi_comm is None else mpi_comm
        self.rank = self.mpi_comm.Get_rank()
        self.size = self.mpi_comm.Get_size()
        self.check = check

    def _wait(self, request: Any) -> None:
        while not request.Test():
            if self.check is not None:
                self.check()
            time.sleep(self.POLL_INTERVAL)

    def bcast(self, value: Any, root: int = 0) -> Any:
        """Return what rank `root` gave, any object that pickles."""
        # Once all ranks have met, the blocking form returns at once.
        self.barrier()
        return self.mpi_comm.bcast(value, root=root)

    def allgather(self, value: Any) -> list[Any]:
        """Return what every rank gave, any objects that pickle."""
        self.barrier()
        return list(self.mpi_comm.allgather(value))

    def any(self, flag: bool) -> bool:
        """Say whether `flag` is true on some rank."""
        mine, any_rank = bytearray([bool(flag)]), bytearray(1)
        self._wait(
            self.mpi_comm.Iallreduce([mine, self._mpi.BYTE], [any_rank, self._mpi.BYTE], op=self._mpi.BOR)
        )
        return bool(any_rank[0])

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self._wait(self.mpi_comm.Ibarrier())


def number_of_ranks(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many server ranks the launcher has started; 1 where it does not say."""
    text = environment.get(RANKS_VARIABLE, "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationFileError(
            f"{RANKS_VARIABLE} is {text!r}: a number of server ranks, 1 or more, was expected"
        )
    return int(text)


def process_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return this process's rank among the server's; MPI is asked only where there are several."""
    if number_of_ranks(environment) == 1:
        return 0
    from mpi4py import MPI

    return int(MPI.COMM_WORLD.Get_rank())


def make_communicator(
    environment: Mapping[str, str] = os.environ, check: Callable[[], None] | None = None
) -> Communicator:
    """Return the communicator that the launcher's environment asks for.

    `ConfigurationFileError` when MPI has started another number of processes than the launcher says.
    """
    expected = number_of_ranks(environment)
    if expected == 1:
        return SingleProcess()
    communicator = MpiProcesses(check=check)
    if communicator.size != expected:
        raise ConfigurationFileError(
            f"the launcher says that the server has {expected} ranks ({RANKS_VARIABLE}), but MPI has "
            f"started {communicator.size}: start the server with mpiexec -n {expected}, and mpi4py built "
            "for that MPI"
        )
    return communicator
