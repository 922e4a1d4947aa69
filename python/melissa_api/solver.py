"""A solver's side of the study: its fields, its rank, and its connection to the server."""

import atexit
import logging
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from melissa.exceptions import ClientError, SchemaError, StudyStopped
from melissa_api.environment import SolverEnvironment
from melissa_api.no_server import NoServer

if TYPE_CHECKING:
    from melissa._melissa import Client

__all__ = ["Solver"]

logger = logging.getLogger("melissa")

DTYPES = ("float32", "float64", "int32", "int64", "uint8")

# How MPI tells a process that it is one of several, for solvers that forget their communicator.
_MPI_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


class Solver:
    """The fields of one rank of a simulation; it connects at the first declaration."""

    def __init__(self) -> None:
        """Know nothing yet: neither rank nor server."""
        self._fields: dict[str, tuple[int, np.dtype[Any]]] = {}
        self._connection: Client | NoServer | None = None
        self._place = (0, 1)
        self._process = 0
        self._is_over = False
        self._has_failed = False

    def init(self, field_name: str, vect_size: Any, dtype: DTypeLike, comm: Any = None) -> None:
        """Declare a field: `vect_size` values of `dtype` on this rank of the communicator."""
        if self._is_over:
            raise ClientError(f'melissa_init("{field_name}") after melissa_finalize: it comes before.')
        if not isinstance(field_name, str):
            raise SchemaError(f"melissa_init: a field's name is a string, {field_name!r} given.")
        size = _size(field_name, vect_size)
        kind = _dtype(field_name, dtype)
        place = _place(comm)
        if self._connection is None:
            self._connect(place)
        elif place != self._place:
            raise ClientError(
                f'melissa_init("{field_name}"): the communicator makes this rank {place[0]} of {place[1]}, '
                f"that of the first field {self._place[0]} of {self._place[1]}. Use one for all fields."
            )
        with self._served() as connection:
            is_new = connection.init(field_name, size, kind.name)
        if not is_new:
            logger.warning('melissa_init("%s") again: once for each field is enough.', field_name)
        self._fields[field_name] = (size, kind)

    def send(self, field_name: str, array: ArrayLike) -> None:
        """Send the next time step of a field."""
        if self._is_over:
            raise ClientError(f'melissa_send("{field_name}") after melissa_finalize: it comes before.')
        if field_name not in self._fields:
            declared = ", ".join(self._fields) or "none"
            raise ClientError(
                f'melissa_send("{field_name}") without melissa_init of that field. Declared here: {declared}.'
            )
        values = _values(field_name, array, *self._fields[field_name])
        with self._served() as connection:
            connection.send(field_name, values)

    def finalize(self) -> None:
        """Wait until the server has everything; nothing can be sent any more."""
        if self._is_over:
            return
        if self._connection is None:
            logger.warning("melissa_finalize without melissa_init: nothing was sent.")
            return
        with self._served() as connection:
            connection.finalize()
        self._is_over = True

    @contextmanager
    def _served(self) -> "Iterator[Client | NoServer]":
        """Give the connection, and take note of a call that the server ends."""
        if self._connection is None:
            raise ClientError("there is no connection to the server: melissa_init comes first.")
        try:
            yield self._connection
        except StudyStopped:
            self._is_over = True
            raise
        except ClientError:
            self._has_failed = True
            raise

    def _connect(self, place: tuple[int, int]) -> None:
        self._place = place
        if os.environ.get("MELISSA_OFFLINE", "0") != "0":
            self._connection = NoServer()
            return
        # Not loaded before it is needed: a solver that imports this module can run without a study.
        from melissa._melissa import Client

        environment = SolverEnvironment.read()
        self._connection = Client(
            environment.server_address,
            environment.key,
            study_epoch=environment.study_epoch,
            simulation_id=environment.simulation_id,
            attempt=environment.attempt,
            rank=place[0],
            size=place[1],
        )
        self._process = os.getpid()
        atexit.register(self._warn_at_exit)

    def _warn_at_exit(self) -> None:
        # A forked child is not the solver. A call that failed has said more than this could.
        if not self._is_over and not self._has_failed and os.getpid() == self._process:
            logger.warning(
                "the solver ends without melissa_finalize: the server takes it for a crash, and starts the "
                "simulation again."
            )


def _size(field_name: str, vect_size: Any) -> int:
    try:
        size = operator.index(vect_size)
    except TypeError:
        size = -1
    if size < 0:
        raise SchemaError(
            f'melissa_init("{field_name}"): vect_size is {vect_size!r}, expected a whole number, at least 0.'
        )
    return size


def _dtype(field_name: str, dtype: DTypeLike) -> np.dtype[Any]:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(object)
    if kind.name not in DTYPES or not kind.isnative:
        raise SchemaError(
            f'melissa_init("{field_name}"): dtype is {dtype!r}, expected one of {", ".join(DTYPES)}.'
        )
    return kind


def _place(comm: Any) -> tuple[int, int]:
    """Return the rank and the number of ranks of an mpi4py communicator; None is a serial solver."""
    if comm is None:
        for variable in _MPI_SIZE_VARIABLES:
            if os.environ.get(variable, "1") not in {"0", "1"}:
                logger.warning(
                    "melissa_init without a communicator, and MPI started %s processes (%s): each of them "
                    "will say that it is the whole simulation. Pass the communicator.",
                    os.environ[variable],
                    variable,
                )
        return 0, 1
    if not (hasattr(comm, "Get_rank") and hasattr(comm, "Get_size")):
        raise ClientError(f"melissa_init: comm is {comm!r}, expected an mpi4py communicator, or None.")
    return int(comm.Get_rank()), int(comm.Get_size())


def _values(field_name: str, array: ArrayLike, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the array as contiguous values of the declared dtype: the same memory if it is that already."""
    call = f'melissa_send("{field_name}")'
    values = np.asarray(array)
    if values.ndim != 1:
        raise SchemaError(
            f"{call}: an array of shape {values.shape}, expected {size} values in one dimension. "
            "Use array.ravel()."
        )
    if values.size != size:
        raise SchemaError(f"{call}: {values.size} values given, expected {size}, as melissa_init declared.")
    given, wanted = values.dtype, dtype
    if given.kind not in "biuf" or (given.kind == "f" and wanted.kind in "iu"):
        raise SchemaError(f"{call}: values of type {given} given, and the field was declared as {wanted}.")
    converted = np.ascontiguousarray(values, dtype=wanted)
    if wanted.kind in "iu" and not np.can_cast(given, wanted) and not np.array_equal(converted, values):
        limits = np.iinfo(wanted)
        raise SchemaError(f"{call}: values beyond {limits.min} to {limits.max}, the range of {wanted}.")
    return converted
