"""One state per simulation, made of what every server rank knows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from melissa.server.study_receiver import ReceptionState

__all__ = ["MergedState", "MergedStates"]


@dataclass(frozen=True)
class MergedState:
    """What the ranks know of a simulation together; `steps_complete` is the sum."""

    simulation_id: int
    attempt: int
    draw: int
    status: str = "planned"
    steps_complete: int = 0
    host: str = ""
    error: str = ""


def _merged_status(statuses: Sequence[str]) -> str:
    """Return the status of a simulation that has one of `statuses` on each rank.

    It is finished when it is so on every rank. Of the ranks that it still sends to, the one with which it
    gets on best counts: it is silent only when it is so on all of them. A rank where it is still planned says
    nothing of it: it connects to the next rank only when the one before has welcomed it. A client that has
    not kept this order, and is silent behind a rank that it waits for, may wait for another that did the
    same: it is silent, and makes way.
    """
    unfinished = {status for status in statuses if status != "finished"}
    if not unfinished:
        return "finished"
    for status in ("dropped", "running", "disconnected"):
        if status in unfinished:
            return status
    if unfinished == {"planned"}:
        return "planned" if "finished" not in statuses else "running"
    out_of_order = "connected" in statuses and "silent" in statuses[statuses.index("connected") :]
    return "silent" if out_of_order or unfinished - {"planned"} == {"silent"} else "connected"


class MergedStates:
    """The states of all simulations on all ranks; those of attempts that were replaced do not count."""

    def __init__(self, nb_ranks: int) -> None:
        self._nb_ranks = nb_ranks
        self._draws: dict[int, int] = {}
        self._known: dict[int, list[MergedState]] = {}

    def register(self, simulation_id: int, attempt: int, draw: int) -> None:
        """Begin an attempt: on every rank it is planned, with the steps that the same draw has brought."""
        steps = [0] * self._nb_ranks
        if self._draws.get(simulation_id) == draw:
            steps = [known.steps_complete for known in self._known[simulation_id]]
        self._draws[simulation_id] = draw
        self._known[simulation_id] = [
            MergedState(simulation_id, attempt, draw, steps_complete=count) for count in steps
        ]

    def update(self, rank: int, state: ReceptionState) -> MergedState | None:
        """Take what a rank says of a simulation; return what all say now, None for an attempt of before."""
        known = self._known.get(state.simulation_id)
        if known is None or known[rank].attempt != state.attempt:
            return None
        known[rank] = MergedState(
            state.simulation_id,
            state.attempt,
            state.draw,
            state.status,
            state.steps_complete,
            state.host,
            f"server rank {rank}: {state.error}" if state.error else "",
        )
        return MergedState(
            state.simulation_id,
            state.attempt,
            state.draw,
            _merged_status([each.status for each in known]),
            sum(each.steps_complete for each in known),
            next((each.host for each in known if each.host), ""),
            known[rank].error,
        )
