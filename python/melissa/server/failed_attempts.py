"""What follows a failed attempt: its simulation runs again, or is given up, or the study has no hope."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable

from melissa.exceptions import FatalError, FaultToleranceError
from melissa.launcher.message import JobUpdate
from melissa.scheduler.job import State
from melissa.server.client_script import ClientScripts
from melissa.server.failed_starts import FailedStarts
from melissa.server.simulation import Simulation, SimulationStatus
from melissa.server.study_plan import StudyPlan

__all__ = ["FailedAttempts"]

logger = logging.getLogger("melissa")

HOPELESS = 3
"""So many clients that end before any time step arrived show that the solver cannot work."""


class FailedAttempts:
    """Keeps what is known of failures, and decides.

    `has_proved_the_solver` says whether some client has done what clients are for; `what_hopeless_clients_do`
    says what those have done of whom none has.
    """

    def __init__(
        self,
        plan: StudyPlan,
        scripts: ClientScripts,
        *,
        has_proved_the_solver: Callable[[], bool],
        what_hopeless_clients_do: str,
    ) -> None:
        self._plan = plan
        self._scripts = scripts
        self._has_proved_the_solver = has_proved_the_solver
        self._what_hopeless_clients_do = what_hopeless_clients_do
        self._fruitless: list[str] = []  # how clients ended that ended before any step arrived
        self._failed_starts = FailedStarts()
        self._refusals: deque[str] = deque(maxlen=5)
        self._errors: dict[int, str] = {}

    # What explains a failure.

    def has_started(self) -> None:
        """Take note that the scheduler has started a client."""
        self._failed_starts.started()

    def connection_failed(self, simulation: Simulation, error: str) -> None:
        """Take note of what the receiver says about a client's connection."""
        self._errors[simulation.id] = error

    def were_refused(self, texts: Iterable[str]) -> None:
        """Take note of what the receiver has refused; the last ones explain why a client fails."""
        self._refusals.extend(texts)

    @property
    def is_pausing(self) -> bool:
        """Whether it is too early for a further client: the last ones could not be started."""
        return self._failed_starts.is_pausing

    @property
    def last(self) -> str:
        """A sentence on the last failure, to be put after another one; empty where there was none."""
        last = self._fruitless[-1] if self._fruitless else self._failed_starts.last
        return f" The last one: {last}" if last else ""

    # What follows.

    def judge(
        self, simulation: Simulation, ending: str, update: JobUpdate, *, others_run: bool
    ) -> str | None:
        """Note that an attempt has failed; return why its simulation is given up, None where it runs again.

        `ending` says how the job has ended; `others_run` whether some other client runs. `FatalError` when
        the clients so far show that none will deliver anything; `FaultToleranceError` where one failure is to
        end the study.
        """
        reason = simulation.cancelled_because
        if not reason:
            reason = ending
            if update.job_state is State.TERMINATED:
                reason += " without melissa_finalize"
            if simulation.steps_complete:
                reason += f", after {simulation.steps_complete} time steps"
        text = f"client of simulation {simulation.id} (attempt {simulation.attempt}) {reason}"
        is_crash = update.job_state is not State.ERROR
        says = "last lines of its stderr" if is_crash else "what the scheduler said"
        details = self._details(simulation, says, update.error)
        simulation.cancelled_because = ""
        simulation.failures += is_crash
        simulation.failures_of_draw += is_crash
        simulation.status = SimulationStatus.PLANNED
        logger.warning(text + details)

        if is_crash:
            self._check_hope(simulation, text, details)
        else:
            self._failed_starts.failed(text + details, others_run=others_run)
        nb_time_steps = self._plan.nb_time_steps
        if self._plan.ignore_client_death:
            return "is given up; the study goes on without it (ignore_client_death)"
        if not self._plan.fault_tolerance:
            raise FaultToleranceError(
                f"{text}; launcher_config.fault_tolerance is false, so this ends the study "
                f"(ignore_client_death true would go on without this simulation){details}"
            )
        if nb_time_steps is not None and simulation.steps_complete >= nb_time_steps:
            # A solver that sends more steps would fail with each attempt; one that died at its end was done.
            return (
                f"is not run again: all its {nb_time_steps} time steps (study_options.nb_time_steps) are here"
            )
        return None

    def _details(self, simulation: Simulation, says: str, lines: str) -> str:
        text = ""
        if error := self._errors.pop(simulation.id, ""):
            text += f"\n  the server about its connection: {error}"
        if lines.strip():
            text += f"\n  {says}:" + "".join(f"\n    {line}" for line in lines.strip().splitlines())
        return text

    def _check_hope(self, simulation: Simulation, text: str, details: str) -> None:
        """Raise `FatalError` when the first clients have shown that none will deliver anything."""
        if self._has_proved_the_solver():
            return
        self._fruitless.append(text)
        if len(self._fruitless) < HOPELESS:
            return
        refusals = "".join(f"\n  refused: {refusal}" for refusal in self._refusals if refusal not in details)
        raise FatalError(
            f"the first {HOPELESS} clients {self._what_hopeless_clients_do}, so the study is stopped. The "
            f"last one: {text}{details}{refusals}\n"
            f"  To try it by hand, without a server: {self._scripts.path(simulation.id)}"
        )
