"""Reception on all server ranks, with the interface of one receiver: what the control thread works with."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from melissa.exceptions import FatalError
from melissa.server.figures import RankFigures, sum_of
from melissa.server.ranks.hub import RankHub
from melissa.server.ranks.merge import MergedState, MergedStates
from melissa.server.ranks.message import (
    AbandonAttempt,
    CloseLedger,
    Confirm,
    GiveUp,
    LiftWatermark,
    RegisterAttempt,
    Settle,
)
from melissa.server.study_receiver import RankReceiver, ReceptionState

if TYPE_CHECKING:
    from melissa._melissa import Buffer
    from melissa.server.parameter_registry import ParameterRegistry

__all__ = ["RankedReceivers"]

logger = logging.getLogger("melissa")


class RankedReceivers:
    """The receivers of all ranks: rank 0's own directly, those of the others through their agents.

    States are merged (`MergedStates`), figures summed. A simulation that is finished on every rank is
    confirmed on all: only then is it final there.
    """

    def __init__(
        self,
        hub: RankHub,
        receiver: RankReceiver,
        buffer: Buffer,
        registry: ParameterRegistry,
        own_figures: Callable[[str | None], RankFigures],
        planned: int | None = None,
    ) -> None:
        self._hub = hub
        self._receiver = receiver
        self._buffer = buffer
        self._registry = registry
        self._own_figures = own_figures
        self._planned = planned
        self._states = MergedStates(hub.nb_ranks)
        self._confirmed: set[int] = set()

    # Simulations.

    def _is_for_validation(self, simulation_id: int) -> bool:
        """Say whether rank 0 alone receives a simulation: those for validation follow the planned ones."""
        return self._planned is not None and simulation_id >= self._planned

    def register(self, simulation_id: int, attempt: int, draw: int, parameters: Sequence[float]) -> None:
        """Announce an attempt on every rank; returns when all know it and its parameters."""
        if self._is_for_validation(simulation_id):
            self._receiver.register(simulation_id, attempt, draw, parameters)
            return
        drawn = self._registry.parameters(simulation_id, draw) or []
        try:
            json.dumps(drawn)
        except (TypeError, ValueError) as error:
            raise FatalError(
                f"the parameters of simulation {simulation_id}, {drawn!r:.200}, cannot travel to the other "
                f"server ranks ({error}): draw numbers, strings, or lists of them"
            ) from None
        self._states.register(simulation_id, attempt, draw)
        request = self._hub.ask(
            lambda number: RegisterAttempt(number, simulation_id, attempt, draw, list(parameters), drawn)
        )
        self._receiver.register(simulation_id, attempt, draw, parameters)
        self._hub.wait_for(request)

    def finish(self, simulation_id: int, reason: str) -> None:
        """Give a simulation up on every rank."""
        self._receiver.finish(simulation_id, reason)
        if not self._is_for_validation(simulation_id):
            self._hub.tell(GiveUp(simulation_id, reason))

    def abandon_attempt(self, simulation_id: int) -> None:
        """Abandon an attempt on every rank."""
        self._receiver.abandon_attempt(simulation_id)
        if not self._is_for_validation(simulation_id):
            self._hub.tell(AbandonAttempt(simulation_id))

    def changes(self, timeout: float) -> Sequence[ReceptionState]:
        """Return the states that changed on some rank; empty after `timeout` seconds."""
        merged: dict[int, MergedState] = {}
        own = self._receiver.changes(timeout)
        of_rank_zero_alone = [state for state in own if self._is_for_validation(state.simulation_id)]
        changes: list[tuple[int, ReceptionState]] = [
            (0, state) for state in own if not self._is_for_validation(state.simulation_id)
        ]
        for rank, state in [*changes, *self._hub.take_changes()]:
            together = self._states.update(rank, state)
            if together is not None:
                merged[together.simulation_id] = together
        for state in merged.values():
            if state.status == "finished" and state.simulation_id not in self._confirmed:
                self._confirmed.add(state.simulation_id)
                self._receiver.confirm(state.simulation_id)
                self._hub.tell(Confirm(state.simulation_id, state.steps_complete))
        return [*of_rank_zero_alone, *merged.values()]

    def settle(self) -> None:
        """Return when all that has happened on other ranks until now is known here."""
        self._hub.wait_for(self._hub.ask(Settle))

    def lift_watermark(self) -> None:
        """Let training start on every rank with what is there."""
        self._buffer.lift_watermark()
        self._hub.tell(LiftWatermark())

    @property
    def reception_over(self) -> bool:
        """Whether reception is over on every rank."""
        figures = self._hub.figures
        return self._receiver.reception_over and all(
            rank in figures and figures[rank].reception_over for rank in range(1, self._hub.nb_ranks)
        )

    def stop(self) -> None:
        """Stop reception early on every rank."""
        self._receiver.stop()
        self._hub.tell_stop()

    def refusals(self) -> list[str]:
        """Return what was refused on any rank since the last call."""
        return [*self._receiver.refusals(), *self._hub.take_refusals()]

    # Figures.

    def figures(self) -> list[RankFigures]:
        """Return the figures of all ranks, in their order: rank 0's of now, the others' of a moment ago."""
        return [self._own_figures(None), *self._other_figures()]

    def _other_figures(self) -> list[RankFigures]:
        return [self._hub.figures.get(rank, RankFigures(rank)) for rank in range(1, self._hub.nb_ranks)]

    def counters(self) -> dict[str, Any]:
        """Return the sums over the ranks."""
        counters = [self._receiver.counters(), *(figures.counters for figures in self._other_figures())]
        sums = sum_of(counters)
        if any(values.get("expected_samples", -1) < 0 for values in counters):
            sums["expected_samples"] = -1
        return sums

    def ledger(self, final_reason: str | None = None) -> dict[str, int]:
        """Return the sums over the ranks; a `final_reason` closes all ledgers."""
        figures = self.figures() if final_reason is None else self.close_ledgers(final_reason)
        return sum_of([each.ledger for each in figures])

    def close_ledgers(self, final_reason: str, timeout: float | None = None) -> list[RankFigures]:
        """Close the ledgers of all ranks, and return the final figures.

        With a `timeout` those of a rank that does not answer so long are the last ones that came.
        """
        request = self._hub.ask(lambda number: CloseLedger(number, final_reason))
        own = self._own_figures(final_reason)
        if timeout is None:
            self._hub.wait_for(request)
        elif not self._hub.wait_shortly_for(request, timeout):
            logger.warning("not every server rank has told its last figures")
        return [own, *self._other_figures()]

    def close(self) -> None:
        """End the receiving thread of rank 0; each rank closes its own."""
        self._receiver.close()
