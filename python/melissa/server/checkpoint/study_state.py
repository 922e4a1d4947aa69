"""What rank 0 knows of the simulations, as plain data: what was drawn for each, and how each stands."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from melissa.exceptions import CheckpointError
from melissa.server.parameter_registry import plain_list
from melissa.server.simulation import Simulation, SimulationStatus

if TYPE_CHECKING:
    from melissa.server.control import Draw

__all__ = ["StateRequests", "StudyState", "advance_sampler", "plain_parameters"]

logger = logging.getLogger("melissa")


def _plain(value: Any) -> Any:
    """Make of a value that JSON has no form for, an array say, one that it has."""
    return value.tolist() if callable(getattr(value, "tolist", None)) else str(value)


def plain_parameters(parameters: Iterable[Any]) -> list[Any]:
    """Return parameters as a checkpoint keeps them."""
    kept: list[Any] = json.loads(json.dumps(plain_list(parameters), default=_plain))
    return kept


@dataclass
class StudyState:
    """The simulations of a study at one moment.

    `draws` has (simulation, draw, parameters) in the order of drawing: as many draws the sampler has made.
    `simulations` has a record of each that was asked for, in the order of ids. Simulations for validation
    have the same of their own; `validation_files`, name -> (bytes, CRC-32C), have what they sent.
    """

    draws: list[tuple[int, int, list[Any]]] = field(default_factory=list)
    simulations: list[dict[str, Any]] = field(default_factory=list)
    nb_resubmitted: int = 0
    expected_steps: int | None = None
    validation_draws: list[tuple[int, int, list[Any]]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    validation_files: dict[str, tuple[int, int]] = field(default_factory=dict)

    KEPT = ("attempt", "draw", "failures", "failures_of_draw", "given_up", "steps_complete", "words")

    @classmethod
    def of_simulations(
        cls,
        simulations: Iterable[Simulation],
        draws: Iterable[tuple[int, int, list[Any]]],
        nb_resubmitted: int,
        expected_steps: int | None,
        validation: Iterable[Simulation] = (),
        validation_draws: Iterable[tuple[int, int, list[Any]]] = (),
    ) -> StudyState:
        """Copy how the simulations stand."""
        return cls(
            _plain_draws(draws),
            cls._records(simulations),
            nb_resubmitted,
            expected_steps,
            _plain_draws(validation_draws),
            cls._records(validation),
        )

    @classmethod
    def _records(cls, simulations: Iterable[Simulation]) -> list[dict[str, Any]]:
        return [
            {"id": simulation.id, "status": simulation.status.value}
            | {name: getattr(simulation, name) for name in cls.KEPT}
            for simulation in simulations
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a manifest's "study"."""
        content: dict[str, Any] = {
            "draws": [list(draw) for draw in self.draws],
            "simulations": self.simulations,
            "nb_resubmitted": self.nb_resubmitted,
            "expected_steps": self.expected_steps,
        }
        if self.validation:
            content["validation"] = {
                "draws": [list(draw) for draw in self.validation_draws],
                "simulations": self.validation,
                "files": {name: list(known) for name, known in self.validation_files.items()},
            }
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> StudyState:
        """Read what `to_dict` gave."""
        state = cls(
            _read_draws(content), content["simulations"], content["nb_resubmitted"], content["expected_steps"]
        )
        if (validation := content.get("validation")) is not None:
            state.validation_draws = _read_draws(validation)
            state.validation = validation["simulations"]
            state.validation_files = {
                name: (int(size), int(checksum)) for name, (size, checksum) in validation["files"].items()
            }
        return state

    def restored_simulations(self, finished: set[int]) -> list[Simulation]:
        """Return the simulations as a restarted server has them.

        Those of `finished` and those that were given up are final; all others are planned anew.
        """
        return self._restored(self.simulations, self.draws, finished)

    def restored_validation(self, finished: set[int]) -> list[Simulation]:
        """Return the simulations for validation in the same way; of those that run again nothing is here."""
        simulations = self._restored(self.validation, self.validation_draws, finished)
        for simulation in simulations:
            simulation.is_validation = True
            if not simulation.is_final:
                simulation.steps_complete = 0
        return simulations

    @classmethod
    def _restored(
        cls, records: list[dict[str, Any]], draws: list[tuple[int, int, list[Any]]], finished: set[int]
    ) -> list[Simulation]:
        parameters = {(simulation, draw): drawn for simulation, draw, drawn in draws}
        simulations = []
        for record in records:
            simulation = Simulation(record["id"], **{name: record[name] for name in cls.KEPT})
            simulation.parameters = parameters.get((simulation.id, simulation.draw), [])
            if simulation.given_up:
                simulation.status = SimulationStatus.DROPPED
            elif simulation.id in finished:
                simulation.status = SimulationStatus.FINISHED
            simulations.append(simulation)
        return simulations


def _plain_draws(draws: Iterable[tuple[int, int, list[Any]]]) -> list[tuple[int, int, list[Any]]]:
    return [(simulation, draw, plain_parameters(parameters)) for simulation, draw, parameters in draws]


def _read_draws(content: dict[str, Any]) -> list[tuple[int, int, list[Any]]]:
    return [
        (int(simulation), int(draw), list(parameters)) for simulation, draw, parameters in content["draws"]
    ]


class StateRequests:
    """Lets another thread have the state that `make` copies in the control thread between two steps."""

    def __init__(self, make: Callable[[], StudyState]) -> None:
        self._make = make
        self._answers: queue.SimpleQueue[queue.SimpleQueue[StudyState]] = queue.SimpleQueue()

    def answer(self) -> None:
        """Answer whoever has asked; called in the control thread."""
        while not self._answers.empty():
            self._answers.get().put(self._make())

    def ask(self, control: threading.Thread, timeout: float) -> StudyState:
        """Return the state; copied at once where `control` does not run, else by it.

        `CheckpointError` when it does not answer for `timeout` seconds.
        """
        mine: queue.SimpleQueue[StudyState] = queue.SimpleQueue()
        self._answers.put(mine)
        deadline = time.monotonic() + timeout
        while control.is_alive():
            try:
                return mine.get(timeout=0.02)
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise CheckpointError(
                        f"the control thread has not said for {timeout:g} s how the simulations stand"
                    ) from None
        return self._make()


def advance_sampler(draw: Callable[[], Draw], draws: Iterable[tuple[int, int, list[Any]]]) -> None:
    """Draw as many parameters again as were drawn before the restart, so that the next ones are new ones.

    A sampler that draws others than before is warned of; the simulations keep what was drawn for them.
    """
    has_warned = False
    for simulation, number, before in draws:
        again = plain_parameters(draw().parameters)
        # NaN is no equal of itself; texts are compared.
        if not has_warned and json.dumps(again) != json.dumps(before):
            has_warned = True
            logger.warning(
                f"simulation {simulation} (draw {number}) was given the parameters {before!r:.200} before "
                f"the restart, and the sampler draws {again!r:.200} in their place now: it is not a "
                "function of its seed alone. Simulations keep their parameters; those of further ones may "
                "repeat or leave out some"
            )
