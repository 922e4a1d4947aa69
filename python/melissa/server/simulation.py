"""Simulations and what they send: the study code's view of a sample, and the server's view of a client."""

from __future__ import annotations

import enum
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from melissa.exceptions import ProtocolError

if TYPE_CHECKING:
    from melissa._melissa import Sample

__all__ = [
    "FieldData",
    "PartialSimulationData",
    "Simulation",
    "SimulationData",
    "SimulationDataStatus",
    "SimulationStatus",
]


class FieldData(dict[Any, NDArray[Any]]):
    """The fields of a sample: name -> 1-D array, in the study's order; an integer key is a position."""

    def __missing__(self, key: Any) -> NDArray[Any]:
        if isinstance(key, int | np.integer):
            try:
                return list(self.values())[key]
            except IndexError:
                raise KeyError(
                    f"no field at position {key}: there are {len(self)} ({', '.join(self)})"
                ) from None
        raise KeyError(f"no field {key!r}; the fields are {', '.join(map(str, self))}")


class SimulationData:
    """One sample: every field of one time step of one simulation, with the simulation's parameters.

    Attributes
    ----------
    simulation_id
        Number of the simulation, from 0.
    time_step
        Number of the time step, from 0.
    data
        Field name -> 1-D array (read-only; it does not change as long as it is held), in the order of
        ``field_names``. ``data[0]`` is the first field.
    parameters
        A plain list of what was drawn for the simulation, in the order of drawing.

    A `SimulationData` that came out of a buffer keeps its place there from being used again: drop it, or copy
    what you keep.
    """

    __slots__ = ("_sample", "data", "parameters", "simulation_id", "time_step")

    def __init__(
        self,
        simulation_id: int,
        time_step: int,
        data: Mapping[Any, NDArray[Any]] | Sequence[NDArray[Any]],
        parameters: Sequence[Any],
    ) -> None:
        self.simulation_id = simulation_id
        self.time_step = time_step
        if not isinstance(data, FieldData):
            data = FieldData(data) if isinstance(data, Mapping) else FieldData(enumerate(data))
        self.data: FieldData = data
        self.parameters = parameters if isinstance(parameters, list) else list(parameters)
        self._sample: Sample | None = None

    @classmethod
    def from_sample(cls, sample: Sample, field_names: Sequence[str], parameters: list[Any]) -> SimulationData:
        """View `sample`, a pinned sample of a buffer; the pin is held as long as the view."""
        view = cls(
            sample.simulation_id,
            sample.time_step,
            FieldData(zip(field_names, sample.fields, strict=True)),
            parameters,
        )
        view._sample = sample
        return view

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}: {values.dtype}[{values.size}]" for name, values in self.data.items())
        return (
            f"SimulationData(simulation_id={self.simulation_id}, time_step={self.time_step}, "
            f"data={{{fields}}}, parameters={self.parameters})"
        )

    def __reduce__(self) -> tuple[type[SimulationData], tuple[int, int, FieldData, list[Any]]]:
        copies = FieldData((name, values.copy()) for name, values in self.data.items())
        return type(self), (self.simulation_id, self.time_step, copies, self.parameters)


class SimulationDataStatus(enum.Enum):
    """What a part of a sample did to the sample."""

    PARTIAL = 0
    COMPLETE = 1
    ALREADY_RECEIVED = 2
    EMPTY = 3


_DATA_FRAME = struct.Struct("<4sHBBIIIIQQQQII")
_DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 4: np.int64, 5: np.uint8}


@dataclass
class PartialSimulationData:
    """A part of a sample: the share of one client rank in one field of one time step.

    `field` is the field's name, or its position where only the wire's number is known; `offset` the place of
    `data` (1-D) in the whole field, in elements.
    """

    simulation_id: int
    time_step: int
    client_rank: int
    field: str | int
    data: NDArray[Any]
    offset: int = 0

    @property
    def data_size(self) -> int:
        """Number of elements."""
        return int(self.data.size)

    @classmethod
    def from_msg(cls, msg: bytes, learning: int = 2) -> PartialSimulationData:
        """Read a Data frame of the wire (docs/protocol.md); `data` is a view of `msg`.

        The frame says all that there is to know, so `learning` (a mode of older servers) changes nothing.
        Checksums are the receiver's affair, not looked at here. `ProtocolError` when `msg` is no whole Data
        frame.
        """
        if len(msg) < _DATA_FRAME.size:
            raise ProtocolError(
                f"a Data frame has {_DATA_FRAME.size} bytes at least, this message has {len(msg)}"
            )
        magic, version, kind, code, simulation, rank, index, _, step, offset, count, length, _, _ = (
            _DATA_FRAME.unpack_from(msg)
        )
        if (magic, version, kind) != (b"MLSA", 1, 8):
            raise ProtocolError(
                f"no Data frame of protocol 1: magic {magic!r}, version {version}, kind {kind} came; "
                "b'MLSA', 1, 8 were expected"
            )
        dtype = _DTYPES.get(code)
        if dtype is None:
            raise ProtocolError(f"unknown dtype code {code} in a Data frame; known: {sorted(_DTYPES)}")
        payload = memoryview(msg)[_DATA_FRAME.size :]
        if not len(payload) == length == count * np.dtype(dtype).itemsize:
            raise ProtocolError(
                f"a Data frame of {count} elements of {np.dtype(dtype).name} announces {length} bytes and "
                f"has {len(payload)}"
            )
        return cls(simulation, step, rank, index, np.frombuffer(payload, dtype=dtype), offset)


class SimulationStatus(enum.Enum):
    """Where a simulation stands."""

    PLANNED = "planned"
    CONNECTED = "connected"
    RUNNING = "running"
    DISCONNECTED = "disconnected"
    SILENT = "silent"
    FINISHED = "finished"
    DROPPED = "dropped"

    @property
    def is_final(self) -> bool:
        """Whether nothing more comes from a simulation with this status."""
        return self in (SimulationStatus.FINISHED, SimulationStatus.DROPPED)


@dataclass
class Simulation:
    """What the server knows of one simulation.

    `attempt` counts how often its client was asked for, from 1; `draw` the sets of parameters that it was
    given, from 0. `failures` counts all attempts that were started and failed, `failures_of_draw` those with
    its present parameters; `words` are the parameters as its solver's command line has them. `given_up` says
    that it failed for good: one that an early stop ends is dropped as well, and would run again after a
    restart.
    """

    simulation_id: int
    parameters: list[Any] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    draw: int = 0
    attempt: int = 0
    failures: int = 0
    failures_of_draw: int = 0
    given_up: bool = False
    status: SimulationStatus = SimulationStatus.PLANNED
    steps_complete: int = 0
    host: str = ""
    has_job: bool = False
    job_is_running: bool = False
    job_since: float = field(default_factory=time.monotonic)
    cancelled_because: str = ""
    is_validation: bool = False

    @property
    def id(self) -> int:
        """The same as `simulation_id`."""
        return self.simulation_id

    @property
    def is_final(self) -> bool:
        """Whether nothing more comes from it."""
        return self.status.is_final
