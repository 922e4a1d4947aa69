"""What a Python solver imports: three calls send its fields to the study's server, time step by time step.

::

    from melissa_api import melissa_init, melissa_send, melissa_finalize

    melissa_init("temperature", len(temperature))
    for step in range(nb_time_steps):
        temperature = solve(temperature)
        melissa_send("temperature", temperature)
    melissa_finalize()

A parallel solver passes its mpi4py communicator to `melissa_init`; every rank makes the same calls with its
own part of the field. ``melissa-launcher`` starts the solver, and tells it where the server is.
"""

from typing import Any, SupportsIndex

from numpy.typing import ArrayLike, DTypeLike

from melissa_api.solver import Solver

__all__ = ["melissa_finalize", "melissa_init", "melissa_init_typed", "melissa_send", "melissa_send_typed"]

_solver = Solver()


def melissa_init(field_name: str, vect_size: SupportsIndex, comm: Any = None) -> None:
    """Declare a field of double precision; the first call connects to the server.

    Parameters
    ----------
    field_name
        One of ``study_options.field_names``.
    vect_size
        Values of the field on this rank.
    comm
        The solver's mpi4py communicator; None for a serial solver.

    Raises
    ------
    ClientError
        The environment is not that of a job of the launcher, or the server cannot be reached, or refuses: the
        text says why.
    SchemaError
        For a size that is no whole number.
    """
    _solver.init(field_name, vect_size, "float64", comm)


def melissa_send(field_name: str, array: ArrayLike) -> None:
    """Send the next time step of a field, shape ``(vect_size,)``; numbers of other types become doubles.

    Waits while the server's training buffer is full. Raises `SchemaError` for an array that is not what was
    declared, `ClientError` for a field that was not and for a server that is lost, and `StudyStopped`, which
    ends the solver without a traceback, when the study is over.
    """
    _solver.send(field_name, array)


def melissa_finalize() -> None:
    """Say that everything was sent; returns when the server has it all. A second call does nothing."""
    _solver.finalize()


def melissa_init_typed(field_name: str, vect_size: SupportsIndex, dtype: DTypeLike, comm: Any = None) -> None:
    """Declare a field of float32, float64, int32, int64 or uint8; otherwise as `melissa_init`."""
    _solver.init(field_name, vect_size, dtype, comm)


def melissa_send_typed(field_name: str, array: ArrayLike) -> None:
    """Send the next time step of a field of `melissa_init_typed`; otherwise as `melissa_send`."""
    _solver.send(field_name, array)
