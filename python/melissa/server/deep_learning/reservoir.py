"""Training buffers with the names of the reference page, over the buffer of the Rust extension."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self, overload

import numpy as np

from melissa._melissa import Buffer, Sample
from melissa.exceptions import UnsupportedConfiguration
from melissa.server.parameter_registry import ParameterRegistry, numeric_parameters, plain_list
from melissa.server.simulation import SimulationData

__all__ = [
    "FIFO",
    "FIRO",
    "BaseQueue",
    "BatchReservoir",
    "BufferType",
    "Reservoir",
    "default_assembly_slots",
    "make_buffer",
]


class BufferType(enum.Enum):
    """The kinds of training buffer."""

    FIFO = 0
    FIRO = 1
    Reservoir = 2
    BatchReservoir = 3
    SimPairedReservoir = 4


def default_assembly_slots(capacity: int, clients_at_once: int | None = None) -> int:
    """Return how many samples may be in reception beside a population of `capacity`.

    One per client that may be alive, and no more than an eighth of the capacity (but 16): several clients
    share a slot by turns where there are fewer.
    """
    most = max(16, capacity // 8)
    return most if clients_at_once is None else max(1, min(clients_at_once, most))


class PublicationMutex:
    """A context in which no sample enters the buffer; it nests. Samplers go on."""

    def __init__(self, queue: BaseQueue) -> None:
        self._queue = queue

    def acquire(self) -> bool:
        """Pause publication; returns when none is under way."""
        self._queue.native.pause()
        return True

    def release(self) -> None:
        """Let samples in again."""
        self._queue.native.resume()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class QueueItem:
    """One sample of the population; `data` is its `SimulationData`."""

    __slots__ = ("data",)

    def __init__(self, data: SimulationData) -> None:
        self.data = data


class QueueView(Sequence[QueueItem]):
    """The population of a buffer as a sequence, in no particular order but FIFO's.

    Looking at an item is no delivery. Hold ``buffer.mutex`` while positions are to stay what they are.
    """

    def __init__(self, queue: BaseQueue) -> None:
        self._queue = queue

    def __len__(self) -> int:
        return self._queue.native.population

    @overload
    def __getitem__(self, index: int) -> QueueItem: ...
    @overload
    def __getitem__(self, index: slice) -> list[QueueItem]: ...
    def __getitem__(self, index: int | slice) -> QueueItem | list[QueueItem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        sample = self._queue.native.peek(position) if position >= 0 else None
        if sample is None:
            raise IndexError(f"no sample at position {index}: the buffer holds {len(self)}")
        return QueueItem(self._queue.view(sample))

    def __iter__(self) -> Iterator[QueueItem]:
        for index in range(len(self)):
            sample = self._queue.native.peek(index)
            if sample is None:
                return  # the population shrank meanwhile
            yield QueueItem(self._queue.view(sample))


class PutGetMetric:
    """How far production is ahead: samples that entered minus samples that were drawn."""

    def __init__(self, queue: BaseQueue) -> None:
        self._queue = queue

    @property
    def val(self) -> int:
        """The difference now; below zero where a reservoir delivers samples more than once."""
        metrics = self._queue.native.metrics()
        return int(metrics["published"]) - int(metrics["drawn"])


class BaseQueue:
    """A training buffer: what simulations send waits here for training.

    It takes up memory at the first sample, when sizes are known. `native` is the extension's buffer,
    `registry` what knows the parameters of simulations as they were drawn.

    Parameters
    ----------
    kind
        The policy: see design and documentation of each subclass.
    maxsize
        Samples that the buffer holds at most (its capacity).
    watermark
        Population below which, or at which for FIRO, nothing is delivered while reception goes on.
    pseudo_epochs
        Times that a FIRO delivers each sample.
    batch_size
        Samples of a batch.
    seed
        Of draws and evictions; a server uses its study's seed where none is given.
    assembly_slots
        Samples that may be in reception beside the population.
    lent_slots
        Samples that views may keep from being replaced before further views become copies.

    Raises
    ------
    UnsupportedConfiguration
        The kind cannot work with these numbers; the text has them. It is a `ValueError`.
    """

    def __init__(
        self,
        kind: BufferType,
        maxsize: int,
        *,
        watermark: int = 0,
        pseudo_epochs: int = 1,
        batch_size: int = 1,
        seed: int | None = None,
        assembly_slots: int | None = None,
        lent_slots: int | None = None,
    ) -> None:
        self.kind = kind
        self.maxsize = maxsize
        self.watermark = watermark
        self.pseudo_epochs = pseudo_epochs
        self.batch_size = batch_size
        self.registry = ParameterRegistry()
        self.mutex = PublicationMutex(self)
        self.put_get_metric = PutGetMetric(self)
        self._seed = seed
        self._assembly_slots = assembly_slots
        self._lent_slots = lent_slots
        self.native = self._make_native(seed or 0)

    @property
    def data_wait_seconds(self) -> float:
        """Seconds that gets have waited for data since the first sample was delivered."""
        return float(self.native.metrics()["data_wait_s"])

    def _make_native(self, seed: int) -> Buffer:
        slots = self._assembly_slots
        return Buffer(
            self.kind.name,
            self.maxsize,
            # A FIRO that makes several passes gathers all samples first; its watermark says nothing.
            watermark=0 if self.pseudo_epochs > 1 else self.watermark,
            pseudo_epochs=self.pseudo_epochs,
            batch_size=self.batch_size,
            seed=seed,
            assembly_slots=default_assembly_slots(self.maxsize) if slots is None else slots,
            lent_slots=self._lent_slots,
        )

    def join_study(self, registry: ParameterRegistry, seed: int) -> None:
        """Become the buffer of a study: with its parameters, and its seed where none was given.

        A buffer that holds samples already keeps its seed.
        """
        self.registry = registry
        if self._seed is None and not self.native.bound:
            self._seed = seed
            self.native = self._make_native(seed)

    def __len__(self) -> int:
        return self.native.population

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self)} of {self.maxsize} samples>"

    @property
    def queue(self) -> QueueView:
        """The population: ``len(buffer.queue)``, ``buffer.queue[i].data`` (a `SimulationData`)."""
        return QueueView(self)

    @property
    def seen_ctr(self) -> Counter[int]:
        """Times seen -> number of samples in the population."""
        return Counter(self.native.seen_counts())

    def put(self, item: SimulationData, timeout: float | None = None) -> None:
        """Copy a sample in, waiting up to `timeout` seconds for room (None: as long as it takes).

        The first sample fixes fields, sizes and number of parameters. `SchemaError` for a sample that
        differs, `WaitTimeout`, `BufferClosed` after the end of reception, `TypeError` for what is no
        `SimulationData`.
        """
        if not isinstance(item, SimulationData):
            raise TypeError(f"a training buffer takes SimulationData, not {type(item).__name__}")
        parameters = plain_list(item.parameters)
        arrays = [np.ascontiguousarray(values).reshape(-1) for values in item.data.values()]
        if not self.native.bound:
            fields = [
                (str(name), array.size, array.dtype.name)
                for name, array in zip(item.data, arrays, strict=True)
            ]
            self.native.bind(fields, len(parameters))
        if not all(isinstance(value, float) for value in parameters):
            # The slab keeps numbers as float64; what an integer or a string was is kept here.
            self.registry.record(item.simulation_id, 0, parameters)
        numbers = numeric_parameters(parameters, len(parameters))
        self.native.put(item.simulation_id, item.time_step, arrays, numbers, timeout=timeout)

    def get(self, timeout: float | None = None) -> SimulationData:
        """Draw the next sample, waiting up to `timeout` seconds (None: as long as it takes).

        `EndOfData` when reception is over and nothing is left, `WaitTimeout`, `ReceptionError` when reception
        failed.
        """
        return self.view(self.native.get(timeout))

    def view(self, sample: Sample) -> SimulationData:
        """Return the `SimulationData` that shows `sample`."""
        parameters = self.registry.parameters(sample.simulation_id, sample.draw)
        if parameters is None:
            parameters = sample.parameters
        return SimulationData.from_sample(sample, self.field_names, parameters)

    @property
    def field_names(self) -> list[str]:
        """Names of the fields; empty before the first sample."""
        # Asked for each sample: the extension's list does not change once it is there.
        if not self._field_names:
            self._field_names = [name for name, _, _ in self.native.fields]
        return self._field_names

    _field_names: list[str] = []  # noqa: RUF012  # replaced, never changed


class FIFO(BaseQueue):
    """First in, first out: each sample is delivered once, in the order of arrival."""

    def __init__(self, maxsize: int, **options: Any) -> None:
        super().__init__(BufferType.FIFO, maxsize, **options)


class FIRO(BaseQueue):
    """First in, random out: each sample is delivered once, drawn uniformly while over `watermark` are there.

    With `pseudo_epochs` = k above 1 all samples are gathered first; k passes follow, each in an order of its
    own.
    """

    def __init__(self, maxsize: int, watermark: int, pseudo_epochs: int = 1, **options: Any) -> None:
        super().__init__(
            BufferType.FIRO, maxsize, watermark=watermark, pseudo_epochs=pseudo_epochs, **options
        )


class Reservoir(BaseQueue):
    """Uniform over all that it holds, with repetition; a new sample takes the place of one that was seen.

    After the end of reception each sample that is left is delivered once more.
    """

    def __init__(self, maxsize: int, watermark: int, **options: Any) -> None:
        super().__init__(BufferType.Reservoir, maxsize, watermark=watermark, **options)


class BatchReservoir(BaseQueue):
    """A reservoir whose batches of `batch_size` hold no sample twice."""

    def __init__(self, maxsize: int, watermark: int, batch_size: int, **options: Any) -> None:
        super().__init__(
            BufferType.BatchReservoir, maxsize, watermark=watermark, batch_size=batch_size, **options
        )


def make_buffer(
    buffer_size: int,
    buffer_t: BufferType = BufferType.FIFO,
    per_server_watermark: int | None = None,
    pseudo_epochs: int | None = None,
    batch_size: int | None = None,
    *,
    seed: int | None = None,
    assembly_slots: int | None = None,
    lent_slots: int | None = None,
) -> BaseQueue:
    """Make a training buffer of the kind `buffer_t`.

    Parameters
    ----------
    buffer_size
        Samples that it holds at most.
    per_server_watermark
        Needed by all kinds but FIFO: see `BaseQueue`.
    pseudo_epochs
        Times that a FIRO delivers each sample; 1 unless given.
    batch_size
        Needed by BatchReservoir.
    seed, assembly_slots, lent_slots
        See `BaseQueue`.

    Raises
    ------
    ValueError
        An argument that the kind needs is missing, or cannot work.
    """

    def needed(name: str, value: int | None) -> int:
        if value is None:
            raise ValueError(f"a {buffer_t.name} buffer needs {name}")
        return value

    options: dict[str, Any] = {"seed": seed, "assembly_slots": assembly_slots, "lent_slots": lent_slots}
    if batch_size is not None and buffer_t is not BufferType.BatchReservoir:
        options["batch_size"] = batch_size
    match buffer_t:
        case BufferType.FIFO:
            return FIFO(buffer_size, **options)
        case BufferType.FIRO:
            passes = 1 if pseudo_epochs is None else pseudo_epochs
            # With several passes everything is gathered first, whatever the watermark is.
            watermark = 0 if passes > 1 and per_server_watermark is None else per_server_watermark
            return FIRO(buffer_size, needed("per_server_watermark", watermark), passes, **options)
        case BufferType.Reservoir:
            return Reservoir(buffer_size, needed("per_server_watermark", per_server_watermark), **options)
        case BufferType.BatchReservoir:
            watermark = needed("per_server_watermark", per_server_watermark)
            return BatchReservoir(buffer_size, watermark, needed("batch_size", batch_size), **options)
    built = ", ".join(kind.name for kind in BufferType if kind is not BufferType.SimPairedReservoir)
    raise UnsupportedConfiguration(f"{buffer_t.name} buffers are not in this version; there are {built}")
