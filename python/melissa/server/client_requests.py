"""Which client is asked for next: of a simulation that is run again, one for validation, or a new one.

Parameters are drawn here, in the order of ids, and once more for a simulation that is given fresh ones.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from melissa.launcher.message import SubmitClient
from melissa.server.checkpoint.study_state import StudyState
from melissa.server.client_script import ClientScripts, command_line_token
from melissa.server.link import Link
from melissa.server.parameter_registry import ParameterRegistry, numeric_parameters, plain_list
from melissa.server.roster import Roster
from melissa.server.simulation import Simulation
from melissa.server.study_plan import Draw, StudyPlan
from melissa.server.study_receiver import StudyReceiver

__all__ = ["ClientRequests", "DrawnSets"]

logger = logging.getLogger("melissa")

DrawnSets = list[tuple[int, int]]
"""(simulation, draw) of sets of parameters, in the order of drawing."""


class ClientRequests:
    """Owns the queues of what is to run, and what was drawn.

    `draw` gives one client's parameters; its argument says whether they are for validation. `environment` is
    what every client finds in its own beside the names of simulation and attempt.
    """

    def __init__(
        self,
        plan: StudyPlan,
        *,
        draw: Callable[[bool], Draw],
        scripts: ClientScripts,
        receiver: StudyReceiver,
        link: Link,
        registry: ParameterRegistry,
        roster: Roster,
        environment: dict[str, str],
    ) -> None:
        self._plan = plan
        self._draw_parameters = draw
        self._scripts = scripts
        self._receiver = receiver
        self._link = link
        self._registry = registry
        self._roster = roster
        self._environment = environment
        self.nb_resubmitted = 0
        self.draws: DrawnSets = []
        self.validation_draws: DrawnSets = []
        self._to_resubmit: deque[Simulation] = deque()
        self._to_run_again: deque[Simulation] = deque()  # after a restart of the server
        self._next_id = 0
        self._has_warned_of_nan = False

    def resume(self, state: StudyState, *, to_run_again: Iterable[Simulation], with_validation: bool) -> None:
        """Go on after what was drawn before a restart; without those for validation these begin anew."""
        self.nb_resubmitted = state.nb_resubmitted
        self.draws = [(number, draw) for number, draw, _ in state.draws]
        if with_validation:
            self.validation_draws = [(number, draw) for number, draw, _ in state.validation_draws]
        self._to_run_again.extend(to_run_again)
        self._next_id = len(self._roster.simulations)

    def again(self, simulation: Simulation) -> None:
        """Run a simulation again that has failed."""
        self._to_resubmit.append(simulation)

    def submit(self, most: int) -> list[Simulation]:
        """Ask for as many clients, or for as many as there are to run; return their simulations."""
        submitted: list[Simulation] = []
        while len(submitted) < most and (simulation := self._next()) is not None:
            self._submit_attempt(simulation)
            submitted.append(simulation)
        return submitted

    def _next(self) -> Simulation | None:
        if self._to_run_again:
            return self._run_again(self._to_run_again.popleft())
        if self._to_resubmit:
            return self._prepare_again(self._to_resubmit.popleft())
        if len(self._roster.validation) < self._plan.nb_validation:
            return self._begin_validation()
        if self._next_id < self._plan.nb_simulations:
            return self._begin()
        return None

    def _begin(self) -> Simulation:
        simulation = Simulation(self._next_id)
        self._roster.simulations[simulation.id] = simulation
        self._next_id += 1
        tokens = self._draw(simulation)
        script = self._scripts.write(simulation.id, tokens)
        logger.info(f"created {script.name} with parameters [{', '.join(tokens)}]")
        return simulation

    def _begin_validation(self) -> Simulation:
        # No line as for the others: tools count those.
        simulation = Simulation(self._plan.nb_simulations + len(self._roster.validation), is_validation=True)
        self._roster.validation[simulation.id] = simulation
        tokens = self._draw(simulation)
        script = self._scripts.write(simulation.id, tokens)
        logger.info(
            f"validation simulation {simulation.id} runs {script.name} with parameters {', '.join(tokens)}"
        )
        return simulation

    def _run_again(self, simulation: Simulation) -> Simulation:
        self._scripts.write(simulation.id, simulation.words)
        logger.info(
            f"{'validation ' * simulation.is_validation}simulation {simulation.id} is run again after the "
            f"restart, with the same parameters; {simulation.steps_complete} of its time steps are here"
        )
        return simulation

    def _prepare_again(self, simulation: Simulation) -> Simulation:
        self.nb_resubmitted += not simulation.is_validation
        if simulation.failures_of_draw <= self._plan.crashes_before_redraw:
            logger.info(f"simulation {simulation.id} is submitted again, with the same parameters")
            return simulation
        simulation.draw += 1
        simulation.failures_of_draw = 0
        tokens = self._draw(simulation)
        self._scripts.write(simulation.id, tokens)
        logger.info(
            f"simulation {simulation.id} failed {simulation.failures} times: it is submitted again with "
            f"fresh parameters ({', '.join(tokens)})"
        )
        return simulation

    def _draw(self, simulation: Simulation) -> list[str]:
        """Draw parameters for a simulation; return them as its solver's command line has them."""
        draw = self._draw_parameters(simulation.is_validation)
        simulation.parameters = plain_list(draw.parameters)
        self._registry.record(simulation.id, simulation.draw, simulation.parameters)
        draws = self.validation_draws if simulation.is_validation else self.draws
        draws.append((simulation.id, simulation.draw))
        simulation.words = [command_line_token(word) for word in draw.words]
        return simulation.words

    def _submit_attempt(self, simulation: Simulation) -> None:
        simulation.attempt += 1
        numbers = numeric_parameters(simulation.parameters, self._plan.nb_parameters)
        if any(number != number for number in numbers) and not self._has_warned_of_nan:
            self._has_warned_of_nan = True
            logger.warning(
                f"simulation {simulation.id} has parameters that are no numbers: batches that the buffer "
                "assembles have NaN in their place; SimulationData.parameters has them as they were drawn"
            )
        # The receiver knows an attempt before its client can connect.
        self._receiver.register(simulation.id, simulation.attempt, simulation.draw, numbers)
        simulation.has_job = True
        simulation.job_since = time.monotonic()
        script = str(self._scripts.path(simulation.id))
        environment = self._names(simulation) | self._environment
        self._link.send(SubmitClient(simulation.id, simulation.attempt, script, environment))

    @staticmethod
    def _names(simulation: Simulation) -> dict[str, str]:
        return {
            "MELISSA_SIMU_ID": str(simulation.id),
            "MELISSA_SIM_ID": str(simulation.id),
            "MELISSA_ATTEMPT": str(simulation.attempt),
        }

    def with_parameters(self, draws: DrawnSets) -> list[tuple[int, int, list[Any]]]:
        """Return (simulation, draw, parameters) of what was drawn."""
        return [(number, draw, self._registry.parameters(number, draw) or []) for number, draw in draws]
