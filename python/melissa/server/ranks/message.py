"""The messages between rank 0 of the server and every other rank, and their form on the channel.

::

    rank 0 -> rank k   RegisterAttempt, Confirm, GiveUp, AbandonAttempt, Settle, CloseLedger, LiftWatermark,
                       StopStudy, RankFailure, EndOfStudy, Alive
    rank k -> rank 0   Joined, StateChange, Figures, Refusals, Done, StopWanted, RankFailure

Rank 0 decides all that concerns simulations; a rank k does what it is told with its own receiver. A message
that has a `request` is answered by `Done` with that number, after everything that happened on the rank before
was told. The form is that of the messages of the launcher: `melissa.launcher.message`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from melissa.launcher.message import Message

__all__ = [
    "AbandonAttempt",
    "Alive",
    "CloseLedger",
    "Confirm",
    "Done",
    "EndOfStudy",
    "Figures",
    "GiveUp",
    "Joined",
    "LiftWatermark",
    "RankFailure",
    "RankMessage",
    "Refusals",
    "RegisterAttempt",
    "Settle",
    "StateChange",
    "StopStudy",
    "StopWanted",
]


@dataclass(frozen=True)
class RankMessage(Message):
    """Base of all messages between ranks."""

    known: ClassVar[dict[str, type[Message]]] = {}


# From rank 0.


@dataclass(frozen=True)
class RegisterAttempt(RankMessage):
    """An attempt at a simulation, before its job is submitted.

    `numbers` travel beside samples, `parameters` are what was drawn.
    """

    request: int
    simulation_id: int
    attempt: int
    draw: int
    numbers: list[float]
    parameters: list[Any]


@dataclass(frozen=True)
class Confirm(RankMessage):
    """A simulation is finished on every rank, with so many time steps in all: it is final."""

    simulation_id: int
    steps_complete: int


@dataclass(frozen=True)
class GiveUp(RankMessage):
    """A simulation is given up for good: "client_failed" or "stopped_early"."""

    simulation_id: int
    reason: str


@dataclass(frozen=True)
class AbandonAttempt(RankMessage):
    """The present attempt at a simulation is dead."""

    simulation_id: int


@dataclass(frozen=True)
class Settle(RankMessage):
    """Rank 0 wants to know all that the rank knows."""

    request: int


@dataclass(frozen=True)
class CloseLedger(RankMessage):
    """The study is over: open steps are dropped for that reason ("untrained" or "stopped_early")."""

    request: int
    final_reason: str


@dataclass(frozen=True)
class LiftWatermark(RankMessage):
    """Training is to start with what is there."""


@dataclass(frozen=True)
class StopStudy(RankMessage):
    """The study ends early, on all ranks after the same batch, with the exit status `status`."""

    reason: str
    status: int


@dataclass(frozen=True)
class EndOfStudy(RankMessage):
    """The study has ended, in order or not: the rank may leave."""


@dataclass(frozen=True)
class Alive(RankMessage):
    """Rank 0 is alive."""


# From rank k.


@dataclass(frozen=True)
class Joined(RankMessage):
    """Who has connected."""

    rank: int
    pid: int
    host: str


@dataclass(frozen=True)
class StateChange(RankMessage):
    """What a rank knows of a simulation; see `melissa._melissa.SimulationState`."""

    simulation_id: int
    attempt: int
    draw: int
    status: str
    steps_complete: int
    host: str = ""
    error: str = ""


@dataclass(frozen=True)
class Figures(RankMessage):
    """The figures of a rank, several times a second: see `melissa.server.figures.RankFigures`."""

    values: dict[str, Any]


@dataclass(frozen=True)
class Refusals(RankMessage):
    """What the rank's receiver has refused."""

    texts: list[str]


@dataclass(frozen=True)
class Done(RankMessage):
    """The rank has done what the message with this number asked for."""

    request: int


@dataclass(frozen=True)
class StopWanted(RankMessage):
    """Something asked this rank to stop: a signal, say."""

    reason: str
    status: int


# From either.


@dataclass(frozen=True)
class Leaving(RankMessage):
    """The sender was interrupted before all ranks were ready: it leaves, and so do all others."""

    reason: str
    status: int


@dataclass(frozen=True)
class RankFailure(RankMessage):
    """A rank cannot go on; `kind` is the exception's class, `traceback` the user's, ready to be shown.

    `at` is when it failed, in seconds since the epoch: what fails on other ranks later may follow from it.
    """

    rank: int
    kind: str
    message: str
    traceback: str = ""
    at: float = 0.0
