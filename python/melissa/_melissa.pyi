"""The Rust extension: training buffer, batches, reception and client."""

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Batch",
    "Buffer",
    "CheckpointFile",
    "CheckpointWriting",
    "Client",
    "Cut",
    "Heartbeat",
    "Prefetcher",
    "Receiver",
    "Sample",
    "SimulationState",
    "__version__",
    "take_log",
]

__version__: str

@final
class Buffer:
    """A training buffer in a slab of its own.

    ``kind`` is "FIFO", "FIRO", "Reservoir" or "BatchReservoir". ``capacity`` and ``watermark`` are
    counted in samples. Besides the ``capacity`` slots of the population the slab has ``assembly_slots``
    for samples that are being received and ``lent_slots`` that views may keep from being used again
    (default: an eighth of the capacity, between one and two batches and one sample more).

    Raises:
        UnsupportedConfiguration: a watermark, batch size or number of passes that the kind cannot serve.
        ValueError: no such kind.
    """

    def __new__(
        cls,
        kind: str,
        capacity: int,
        *,
        watermark: int = 0,
        pseudo_epochs: int = 1,
        batch_size: int = 1,
        seed: int = 0,
        assembly_slots: int = 1,
        lent_slots: int | None = None,
    ) -> Buffer: ...
    @property
    def kind(self) -> str: ...
    @property
    def capacity(self) -> int: ...
    @property
    def watermark(self) -> int: ...
    @property
    def pseudo_epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def bound(self) -> bool:
        """Whether the slab is there: fields and sizes are known."""
    @property
    def population(self) -> int:
        """Published samples that can be drawn."""
    @property
    def closed(self) -> bool:
        """Whether reception is over."""
    @property
    def paused(self) -> bool: ...
    @property
    def remaining(self) -> int | None:
        """Deliveries still to come once the drain has begun, else None."""
    @property
    def nb_parameters(self) -> int: ...
    @property
    def fields(self) -> list[tuple[str, int, str]]:
        """(name, elements, dtype) of each field; empty while unbound."""
    def __len__(self) -> int: ...
    def bind(self, fields: Sequence[tuple[str, int, str]], nb_parameters: int) -> None:
        """Allocate the slab for samples of these fields.

        Raises:
            SchemaError: the buffer is bound to other fields.
            MemoryLimitError: the slab does not fit in the memory available.
        """
    def put(
        self,
        simulation_id: int,
        time_step: int,
        fields: Sequence[ArrayLike],
        parameters: Sequence[float] = (),
        *,
        draw: int = 0,
        timeout: float | None = None,
    ) -> None:
        """Copy a sample in, waiting for room up to ``timeout`` seconds.

        Raises:
            BufferClosed: reception is over.
            SchemaError: the fields' number or sizes are not those of the buffer.
            WaitTimeout: no room in time.
        """
    def get(self, timeout: float | None = None) -> Sample:
        """Draw one sample, waiting for it up to ``timeout`` seconds.

        Raises:
            EndOfData: reception is over and nothing is left.
            WaitTimeout: nothing in time.
            ReceptionError: the receiver failed.
        """
    def get_batch(self, nb_samples: int, timeout: float | None = None) -> list[Sample]:
        """Draw a batch; shorter at the end, or when ``timeout`` passed after its first sample. Raises
        as `get`."""
    def sample_into(self, batch: Batch, timeout: float | None = None) -> int:
        """Draw a batch into the arrays of ``batch``, replacing what they hold; gives the number of rows.

        Raises as `get`."""
    def wait_ready(self, timeout: float) -> bool:
        """Wait until a get would not wait: the watermark is passed, or reception over."""
    def close(self) -> None:
        """End reception: the watermark is lifted, and gets deliver what is left."""
    def fail(self, message: str) -> None:
        """End every wait on the buffer with a ReceptionError of that text."""
    def lift_watermark(self) -> None: ...
    def pause(self) -> None:
        """Publish nothing until `resume`; calls nest. When it returns no publication is under way."""
    def resume(self) -> None: ...
    def reopen(self) -> None:
        """Take samples again, where a restored buffer is closed and there is more to receive after all.

        Before anything is drawn. CheckpointError where a FIRO has begun its passes over all samples."""
    def peek(self, index: int) -> Sample | None:
        """The sample at a place of the population, without counting as a delivery; None past its end."""
    def samples(self) -> list[Sample]:
        """The population; samples beyond the lent slots are copies."""
    def cut(
        self,
        receiver: Receiver | None = None,
        prefetcher: Prefetcher | None = None,
        ahead: Iterable[Batch | Iterable[Sample]] | None = None,
    ) -> Cut:
        """Take a cut between two batches: what a checkpoint keeps.

        The population with its payloads (pinned, not copied), the batches ``ahead`` and those that
        ``prefetcher`` holds (copied), in the order of delivery, and what ``receiver`` knows. Nothing is
        received or drawn meanwhile.

        Raises:
            TrainingBufferError: the buffer is not bound yet.
            CheckpointError: the receiver is being stopped.
            ReceptionError: reception failed.
        """
    def seen_counts(self) -> dict[int, int]:
        """Times delivered -> number of samples in the population."""
    def statistics(self) -> dict[str, Any]:
        """What the population is like; no sample is delivered, and publishing and drawing go on.

        samples (that were looked at), unseen (not delivered yet), deliveries_mean, deliveries_max, age_mean,
        age_max (samples published after one), input_mean and input_std (lists: the parameters, then the time
        step; empty for an empty population)."""
    def metrics(self) -> dict[str, Any]:
        """Figures: population, published, drawn, data_wait_s, view_copies, slab_bytes, slots,
        assembly_slots, lent_slots, stride, huge_pages."""

@final
class Sample:
    """One sample of a training buffer, held by a pin, or a private copy when too many views are out."""

    @property
    def simulation_id(self) -> int: ...
    @property
    def draw(self) -> int:
        """How often the simulation's parameters had been drawn anew."""
    @property
    def time_step(self) -> int:
        """From 0."""
    @property
    def is_copy(self) -> bool: ...
    @property
    def parameters(self) -> list[float]: ...
    @property
    def fields(self) -> tuple[NDArray[Any], ...]:
        """One read-only 1-D array for each field, in the order of the study."""

@final
class Batch:
    """A batch of samples as arrays, whose memory is used again only when nothing refers to it any more."""

    def __new__(cls, buffer: Buffer, batch_size: int) -> Batch: ...
    def __len__(self) -> int: ...
    @property
    def inputs(self) -> NDArray[np.floating[Any]]:
        """(samples, parameters + 1): the parameters, then the time step; float64 if a field is, else
        float32."""
    @property
    def parameters(self) -> NDArray[np.floating[Any]]:
        """(samples, parameters): a view of the inputs without their last column."""
    @property
    def simulation_ids(self) -> NDArray[np.int64]: ...
    @property
    def draws(self) -> NDArray[np.int64]: ...
    @property
    def time_steps(self) -> NDArray[np.int64]: ...
    @property
    def fields(self) -> dict[str, NDArray[Any]]:
        """Field name -> (samples, size), in the order of the study."""

@final
class Prefetcher:
    """Gathers batches of a buffer ahead, in a thread of its own, up to ``depth`` of them.

    The batches that ``restored`` has, which wait to be trained, are delivered first.
    """

    def __new__(
        cls,
        buffer: Buffer,
        batch_size: int,
        *,
        depth: int = 2,
        drop_last: bool = False,
        restored: CheckpointFile | None = None,
    ) -> Prefetcher: ...
    def next(self, timeout: float | None = None) -> Batch:
        """The next batch; shorter at the end. Raises as `Buffer.get`."""
    def stop(self) -> None:
        """End the thread; batches that are ready are given up."""
    @property
    def wait_seconds(self) -> float:
        """Seconds that `next` waited since the first batch came."""

@final
class Cut:
    """Everything that a server rank's data plane goes on from, at one moment.

    It pins the samples of the population until they are written, or it is dropped.
    """

    @property
    def population(self) -> int: ...
    @property
    def pending(self) -> int:
        """Samples that were drawn and not yet trained."""
    def write(self, path: str | PathLike[str]) -> CheckpointWriting:
        """Write the cut to a new file, in a thread of its own; once.

        Raises:
            CheckpointError: the file cannot be made.
        """

@final
class CheckpointWriting:
    """A checkpoint file that is being written."""

    @property
    def busy(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> dict[str, Any] | None:
        """What was written: bytes, crc32c, seconds, copied_aside; None when ``timeout`` seconds are over.

        The file is on the disk then, safe from a crash of the machine.

        Raises:
            CheckpointError: it could not be written.
        """

@final
class CheckpointFile:
    """A checkpoint file that was found in order, a valid safetensors file.

    With ``known``, its size in bytes and its CRC-32C, the whole file is read and compared first.

    Raises:
        CheckpointError: it cannot be read, or is damaged; the text says what is wrong.
    """

    def __new__(cls, path: str | PathLike[str], known: tuple[int, int] | None = None) -> CheckpointFile: ...
    @property
    def bytes(self) -> int: ...
    @property
    def population(self) -> int: ...
    @property
    def pending(self) -> list[int]:
        """Samples of each batch that was drawn and not yet trained."""
    @property
    def fields(self) -> list[tuple[str, int, str]]:
        """(name, elements, dtype) of each field."""
    @property
    def buffer(self) -> dict[str, Any]:
        """The training buffer: kind, capacity, watermark, pseudo_epochs, batch_size, nb_parameters, closed,
        published, drawn."""
    @property
    def ledger(self) -> dict[str, int]:
        """The sums, as `Receiver.ledger` has them."""
    @property
    def simulations(self) -> list[tuple[int, int, int, bool, int]]:
        """(id, attempt, draw, finished, complete time steps of the draw) of each that was registered."""
    def restore_buffer(self, like: Buffer) -> Buffer:
        """The training buffer of the checkpoint, with the configuration of ``like``.

        Raises:
            UnsupportedConfiguration: the configuration is not that of the checkpoint.
            MemoryLimitError: the slab does not fit in the memory available.
            CheckpointError: the checkpoint is damaged.
        """
    def pending_samples(self) -> list[Sample]:
        """The samples that were drawn and not yet trained, in the order of delivery."""
    @staticmethod
    def measure(path: str | PathLike[str]) -> tuple[int, int]:
        """Size in bytes and CRC-32C of a file as it is."""

@final
class Client:
    """One rank of one simulation, connected to the server; its calls block as a solver's do.

    ``address`` is the server's host:port, or those of all its ranks, rank 0 first and commas between them;
    the constructor connects to rank 0, the first send to the others. ``key`` is the bytes of the study key.
    Connecting proves the key on both sides, within ``timeout`` seconds for each rank.

    Raises:
        ServerLostError: nobody listens there, or the connection was lost.
        AuthenticationError: who listens does not hold the study's key.
        RefusedError: the server refused this client; the text is its reason.
        ProtocolError: what came is not the protocol of this version.
    """

    def __new__(
        cls,
        address: str,
        key: bytes,
        *,
        study_epoch: int,
        simulation_id: int,
        attempt: int,
        rank: int = 0,
        size: int = 1,
        timeout: float = 60.0,
    ) -> Client: ...
    def init(self, field_name: str, size: int, dtype: str) -> bool:
        """Declare a field: this rank's elements, and the dtype they are handed over in; False when it
        was before.

        Raises:
            ClientError: the field was declared otherwise before, or the first send is over.
        """
    def send(self, field_name: str, values: ArrayLike) -> None:
        """Send this rank's values of the next time step; waits while the server's buffer is full.

        Raises:
            SchemaError: an unknown field, or another number of values than declared.
            StudyStopped: the server ends the study early.
            RefusedError, ServerLostError: as above.
        """
    def finalize(self) -> None:
        """Say that all was sent, and wait until the server has every step complete in memory."""
    def steps(self, field_name: str) -> int | None:
        """Time steps of a field that were sent or skipped; None for an unknown field."""

@final
class Heartbeat:
    """Writes ``beat`` to a socket every ``period`` seconds, from a thread that needs no interpreter.

    It goes on while Python code holds the interpreter's lock for minutes. ``descriptor`` is copied; nobody
    else may write to that connection.

    Raises:
        OSError: ``descriptor`` is no socket.
        ValueError: a period that is none.
    """

    def __new__(cls, descriptor: int, beat: bytes, period: float) -> Heartbeat: ...
    @property
    def is_beating(self) -> bool:
        """False once it was stopped, or the peer is gone."""
    def stop(self) -> None:
        """End the thread; no beat comes after it."""

def take_log() -> list[tuple[int, str]]:
    """The lines logged by Rust threads since the last call: (level of Python's logging, text)."""

@final
class SimulationState:
    """What the receiving side knows of one simulation at the moment of asking."""

    @property
    def simulation_id(self) -> int: ...
    @property
    def attempt(self) -> int: ...
    @property
    def draw(self) -> int: ...
    @property
    def status(self) -> str:
        """planned, connected, running, disconnected, silent, finished or dropped."""
    @property
    def steps_complete(self) -> int:
        """Complete time steps of this draw, in all attempts together."""
    @property
    def host(self) -> str: ...
    @property
    def error(self) -> str:
        """What went wrong last; empty when nothing did."""

@final
class Receiver:
    """Receives the time steps of a study into a training buffer, in a thread of its own.

    It listens on a port of ``host`` that the kernel chooses, from construction on. ``data_type`` is the
    dtype in which floating-point fields are wanted: "float32", "float64" or "as_sent".
    ``simulation_timeout`` is the silence in seconds after which a connected simulation is reported as
    silent. With ``restored``, the checkpoint that ``buffer`` was restored from, its ledger and counters go
    on; ``simulations`` has (id, highest attempt, draw, status) of each that was asked for, those that are
    "finished" or "dropped" final.

    Each rank of a server of ``nb_ranks`` has a receiver of its own. ``distribution`` says which time steps it
    gets: with "round_robin" step t of simulation s goes to rank (t + s) mod ``nb_ranks``, with "simulation"
    all steps of s go to rank s mod ``nb_ranks``. ``validation`` further simulations, with the ids ``planned``
    and up, are for validation: rank 0 alone receives them, and `take_validation` gives what came of them.

    With several ranks, `set_servers` is called before the first `register`, and a simulation that is
    "finished" is final when `confirm` says that it is so on all ranks; until then `register` of a higher
    attempt opens it again. With one rank neither is needed.

    Raises:
        UnsupportedConfiguration, ValueError: a setting that makes no sense.
        OSError: the host cannot be listened at.
    """

    def __new__(
        cls,
        buffer: Buffer,
        *,
        key: bytes,
        study_epoch: int,
        field_names: Sequence[str],
        nb_parameters: int,
        nb_time_steps: int | None,
        planned: int,
        data_type: str = "float32",
        host: str = "127.0.0.1",
        advertise: str | None = None,
        rank: int = 0,
        nb_ranks: int = 1,
        distribution: str = "round_robin",
        validation: int = 0,
        simulation_timeout: float | None = ...,
        receive_buffer_size: int = 262144,
        restored: CheckpointFile | None = None,
        simulations: Sequence[tuple[int, int, int, str]] = ...,
    ) -> Receiver: ...
    @property
    def address(self) -> str:
        """host:port for clients."""
    @property
    def reception_over(self) -> bool: ...
    def set_servers(self, addresses: Sequence[str]) -> None:
        """Say which addresses all server ranks have, rank 0 first: clients are told, and compare.

        Raises:
            UnsupportedConfiguration: too many, too few, or that of this rank is not its own."""
    def register(self, simulation_id: int, attempt: int, draw: int, parameters: Sequence[float]) -> None:
        """Announce an attempt (from 1) at a simulation and its parameters, before its job is submitted.

        Nothing happens for a simulation for validation on a rank other than 0."""
    def confirm(self, simulation_id: int) -> None:
        """The simulation is finished on every server rank, and final by that. Again it does nothing.

        Raises:
            ValueError: it is unknown, or not finished on this rank."""
    def finish(self, simulation_id: int, reason: str) -> None:
        """Give a simulation up for good: "client_failed" or "stopped_early"."""
    def abandon_attempt(self, simulation_id: int) -> None:
        """The attempt is dead: close its connections, forget what is incomplete."""
    def changes(self, timeout: float) -> list[SimulationState]:
        """States that changed since the last call, one per simulation; empty after ``timeout`` seconds.

        Raises:
            ReceptionError: reception failed as a whole."""
    def take_validation(self) -> list[Sample]:
        """Complete samples of simulations for validation since the last call, each a copy with memory of its
        own."""
    def mark_trained(self, what: Batch | Sequence[Sample]) -> None:
        """Note in the ledger that a training step on these samples has returned."""
    def counters(self) -> dict[str, Any]:
        """Figures: samples_received, validation_received, bytes_received, bytes_discarded, connections,
        handshakes_pending, connections_accepted, connections_refused, duplicates_refused, room_wait_s,
        samples_waiting, expected_samples (-1: not known yet), simulations_finished, simulations_dropped.
        Samples and simulations for validation count in validation_received and nowhere else."""
    def stop(self) -> None:
        """Stop early: clients are told to stop, and what they still send is discarded and counted."""
    def ledger(self, final_reason: str | None = None) -> dict[str, int]:
        """The sums: declared, complete, trained, dropped_client_failed, dropped_stopped_early,
        dropped_untrained, duplicates_refused; and validation_received, which is none of them.
        ``final_reason`` ("untrained" or "stopped_early") closes the ledger: steps whose end is open are
        dropped for that reason."""
    def refusals(self) -> list[str]:
        """Texts of what was refused since the last call."""
    def close(self) -> None:
        """End the receiving thread."""
