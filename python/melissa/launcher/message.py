"""The messages between the launcher and rank 0 of the server, and their form on the channel.

::

    server -> launcher   Register, SubmitClient, CancelClient, Progress, Failure, Finished, Ping
    launcher -> server   JobUpdate, Stop, Ping

On the channel a message is one JSON object: its fields, and its class name under ``"type"``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from melissa.exceptions import ProtocolError
from melissa.scheduler.job import State

__all__ = [
    "CancelClient",
    "Failure",
    "Finished",
    "JobUpdate",
    "Message",
    "Ping",
    "Progress",
    "Register",
    "State",
    "Stop",
    "SubmitClient",
    "decode",
    "job_id",
]


def job_id(simulation_id: int, attempt: int) -> str:
    """Name of a client's job in a `JobUpdate`: ``"<simulation>.<attempt>"``."""
    return f"{simulation_id}.{attempt}"


@dataclass(frozen=True)
class Message:
    """Base of all messages."""

    known: ClassVar[dict[str, type[Message]]] = {}
    """The messages of a family, by name; a class that has a dictionary of its own is the base of another."""

    def __init_subclass__(cls) -> None:
        """Make the message known to `decode`."""
        if "known" not in cls.__dict__:
            cls.known[cls.__name__] = cls

    def to_dict(self) -> dict[str, Any]:
        """The message as the dictionary that `Channel.send` takes."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"type": type(self).__name__} | {
            name: value.name if isinstance(value, State) else value for name, value in values.items()
        }

    def encode(self) -> bytes:
        """The message as JSON text; `decode` is the inverse."""
        return json.dumps(self.to_dict()).encode()


@dataclass(frozen=True)
class Ping(Message):
    """The sender is alive."""


@dataclass(frozen=True)
class Register(Message):
    """The server is ready for clients; `addresses` holds each rank's ``host:port`` in the order of ranks.

    It is empty for a server that receives nothing.
    """

    addresses: list[str]
    pid: int
    nb_ranks: int


@dataclass(frozen=True)
class SubmitClient(Message):
    """The server asks for a client: `script` is a shell script's path, `environment` adds to the job's."""

    simulation_id: int
    attempt: int
    script: str
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CancelClient(Message):
    """The server gives up one attempt of a client: its job is to end, or not to start."""

    simulation_id: int
    attempt: int


@dataclass(frozen=True)
class Progress(Message):
    """How far the study is; figures are sums over the server's ranks.

    Keys of `values`: ``simulations_planned``, ``_running``, ``_finished``, ``_failed``, ``_resubmitted``;
    ``samples_received``, ``samples_trained``, ``samples_delivered``, ``samples_expected`` and ``batches``,
    ``batches_expected`` (-1 where not known); ``samples_per_second``, ``batches_per_second``;
    ``population``, ``capacity``, ``watermark`` (samples), and ``populations``, one for each rank;
    ``trainer_wait_s``, ``receiver_wait_s`` (since the start); ``losses`` (tag -> value); ``phase``;
    ``is_saving`` where a rank writes a checkpoint now, ``saves_when_stopped`` where one does after a stop,
    once its training step has ended: the server is not ended before.
    """

    values: dict[str, Any]


@dataclass(frozen=True)
class Failure(Message):
    """The server cannot go on; `kind` is the exception's class, `traceback` the user's, ready to be shown.

    `is_death` says that a process of the server has died: nothing that its code does wrong each time.
    """

    kind: str
    message: str
    traceback: str = ""
    is_death: bool = False


@dataclass(frozen=True)
class Finished(Message):
    """The server has ended the study with `status`; `report` is the content of ``study_report.json``."""

    status: int
    report: dict[str, Any]


@dataclass(frozen=True)
class JobUpdate(Message):
    """A client's job has changed its state.

    `exit_code` (minus the signal for a killed job) and `error`, the last lines of its stderr or why it
    could not be started, come with jobs that have ended.
    """

    job_id: str
    job_state: State
    exit_code: int | None = None
    error: str = ""


@dataclass(frozen=True)
class Stop(Message):
    """The launcher asks the server to end the study early."""

    reason: str


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_mapping_of_strings(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, str) for pair in value.items() for entry in pair)


# Form of a field on the channel, by its annotation, and how an error calls it.
_FORMS: dict[str, tuple[Callable[[object], bool], str]] = {
    "str": (lambda value: isinstance(value, str), "a string"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (_is_integer, "an integer"),
    "int | None": (lambda value: value is None or _is_integer(value), "an integer or null"),
    "float": (lambda value: isinstance(value, float | int), "a number"),
    "list[float]": (
        lambda value: isinstance(value, list) and all(isinstance(entry, float | int) for entry in value),
        "a list of numbers",
    ),
    "list[Any]": (lambda value: isinstance(value, list), "a list"),
    "list[str]": (
        lambda value: isinstance(value, list) and all(isinstance(entry, str) for entry in value),
        "a list of strings",
    ),
    "dict[str, str]": (_is_mapping_of_strings, "an object of strings"),
    "dict[str, Any]": (lambda value: isinstance(value, dict), "an object"),
    "State": (lambda value: value in State.__members__, f"one of {', '.join(State.__members__)}"),
}


def decode(data: bytes | str | Mapping[str, Any], family: type[Message] = Message) -> Message:
    """Make the message that `data` holds; it is JSON text or the dictionary that came off a `Channel`.

    `family` is the base of the messages that may come.

    Keys that a message does not have are left out, so that a newer peer may say more. `ProtocolError` says
    which field is wrong, what came and what was expected.
    """
    if isinstance(data, bytes | str):
        try:
            data = json.loads(data)
        except ValueError as error:
            raise ProtocolError(f"a message is not JSON: {error}") from error
    if not isinstance(data, Mapping):
        raise ProtocolError(f"a message must be an object, not {data!r:.200}")
    name = data.get("type")
    kind = family.known.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ProtocolError(f"unknown message {name!r:.200}; known: {', '.join(sorted(family.known))}")
    values = {}
    for entry in fields(kind):
        if entry.name not in data:
            continue
        value = data[entry.name]
        is_valid, expected = _FORMS[str(entry.type)]
        if not is_valid(value):
            raise ProtocolError(f"{name}.{entry.name} must be {expected}, but {value!r:.200} came")
        values[entry.name] = State[value] if entry.type == "State" else value
    try:
        return kind(**values)
    except TypeError as error:
        raise ProtocolError(f"incomplete {name} message: {error}") from None
