"""The control thread: asks the launcher for clients, follows simulations, decides what follows a failure.

One thread does all that is done per simulation, so that its state needs no lock. It never calls MPI, and
nothing per time step passes through it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from melissa.exceptions import FatalError, FaultToleranceError
from melissa.launcher.message import CancelClient, JobUpdate, Message, Ping, Progress, Stop, SubmitClient
from melissa.scheduler.job import State
from melissa.server.checkpoint.study_state import StateRequests, StudyState
from melissa.server.client_script import ClientScripts, command_line_token
from melissa.server.ending import StudyEnding
from melissa.server.extension_log import forward_extension_log
from melissa.server.failed_starts import FailedStarts
from melissa.server.figures import RankFigures, study_figures
from melissa.server.link import Link
from melissa.server.parameter_registry import ParameterRegistry, numeric_parameters, plain_list
from melissa.server.progress import StudyProgress, StudyRates
from melissa.server.simulation import Simulation, SimulationStatus
from melissa.server.study_receiver import ReceptionState, StudyReceiver
from melissa.utility.channel import ChannelClosed
from melissa.utility.process import describe_exit

__all__ = ["Draw", "Listeners", "StudyControl", "StudyPlan"]

logger = logging.getLogger("melissa")

HOPELESS = 3
"""So many clients that end before any time step arrived show that the solver cannot work."""


@dataclass(frozen=True)
class StudyPlan:
    """What the configuration says about running simulations.

    `nb_validation` simulations are run beside the `nb_simulations`, for validation. `jobs_at_once` counts
    clients. `simulation_timeout` and `launcher_timeout` are seconds; None is never.
    """

    nb_simulations: int
    nb_parameters: int
    nb_time_steps: int | None
    jobs_at_once: int
    fault_tolerance: bool = True
    ignore_client_death: bool = False
    crashes_before_redraw: int = 1000
    simulation_timeout: float | None = 400.0
    launcher_timeout: float | None = 120.0
    remove_client_scripts: bool = False
    nb_validation: int = 0


class Draw(NamedTuple):
    """One client's parameters: as they were drawn, and as words for the solver's command line."""

    parameters: Iterable[Any]
    words: Iterable[Any]


@dataclass
class Listeners:
    """Whom the control thread tells: each is called in that thread, and must be quick."""

    simulation_finished: Callable[[Simulation], None] = lambda simulation: None
    reception_over: Callable[[], None] = lambda: None
    tick: Callable[[dict[str, float]], None] = lambda counters: None


class StudyControl:
    """Runs the ensemble; see the module's text.

    `draw` gives one client's parameters and is called in the control thread; `report_failure`
    tells the launcher of an error of this thread at once, since training may be far from its next look at
    `ending`. `figures` gives those of all server ranks. Where there are several, `settle` returns when this
    one knows all that the others know, and `watch_ranks` looks for ranks that wait for each other.
    """

    POLL_INTERVAL = 0.05  # seconds, as all below
    PROGRESS_PERIOD = 0.5
    REMINDER_PERIOD = 30.0
    STOP_GRACE = 2.0
    CANCEL_GRACE = 10.0
    WAITS_FOR_CONNECTIONS = True
    """Whether clients are to connect."""

    def __init__(
        self,
        plan: StudyPlan,
        *,
        draw: Callable[[], Draw],
        draw_validation: Callable[[], Draw] | None = None,
        scripts: ClientScripts,
        receiver: StudyReceiver,
        link: Link,
        registry: ParameterRegistry,
        progress: StudyProgress,
        ending: StudyEnding,
        report_failure: Callable[[BaseException], None],
        listeners: Listeners | None = None,
        figures: Callable[[], list[RankFigures]] | None = None,
        settle: Callable[[], None] = lambda: None,
        watch_ranks: Callable[[list[RankFigures], list[Simulation]], None] | None = None,
    ) -> None:
        self._plan = plan
        self._draw_parameters = draw
        self._draw_validation = draw_validation or draw
        self._scripts = scripts
        self._receiver = receiver
        self._link = link
        self._registry = registry
        self._progress = progress
        self._ending = ending
        self._report_failure = report_failure
        self._listeners = listeners or Listeners()
        self._figures = figures or (lambda: [RankFigures.of(0, progress, receiver)])
        self._settle = settle
        self._watch_ranks = watch_ranks

        self.simulations: dict[int, Simulation] = {}
        """Every simulation that was asked for so far, but for those of `validation`."""
        self.validation: dict[int, Simulation] = {}
        """Every simulation that was asked for so far for validation; their ids follow those of the others."""
        self.nb_resubmitted = 0
        self.nb_given_up = 0
        """Simulations that failed for good; those that an early stop ends are none of them."""
        self._to_resubmit: deque[Simulation] = deque()
        self._to_run_again: deque[Simulation] = deque()  # after a restart of the server
        self._draws: list[tuple[int, int]] = []  # (simulation, draw), in the order of drawing
        self._validation_draws: list[tuple[int, int]] = []
        self._states = StateRequests(self._state)
        self._next_id = 0
        self._fruitless: list[str] = []  # how clients ended that ended before any step arrived
        self._failed_starts = FailedStarts()
        self._refusals: deque[str] = deque(maxlen=5)
        self._cancelled_at: dict[int, float] = {}
        self._disconnected_at: dict[int, float] = {}
        self._errors: dict[int, str] = {}
        self._is_over = False
        self._has_warned_of_nan = False
        self._has_warned_of_steps = False
        self._expected_steps = plan.nb_time_steps
        self._winding_down_since: float | None = None
        self._launcher_heard_at = time.monotonic()
        self._progress_at = 0.0
        self._reminder_at = time.monotonic()
        self._rates = StudyRates()
        self._finishing = threading.Event()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="melissa-control", daemon=True)

    # What other threads call.

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def state(self, timeout: float = 10.0) -> StudyState:
        """Return how the simulations stand: a copy, made in the control thread between two of its steps."""
        return self._states.ask(self._thread, timeout)

    def resume(
        self, state: StudyState, simulations: list[Simulation], validation: list[Simulation] | None = None
    ) -> None:
        """Go on with the simulations of before a restart, before the thread is started.

        Those that are not final run again, with the same parameters. Without those for `validation` they
        begin anew.
        """
        if validation:
            self._validation_draws = [(number, draw) for number, draw, _ in state.validation_draws]
            self.validation = {simulation.id: simulation for simulation in validation}
            self._to_run_again.extend(simulation for simulation in validation if not simulation.is_final)
        self.nb_resubmitted = state.nb_resubmitted
        self._expected_steps = self._plan.nb_time_steps or state.expected_steps
        self._draws = [(number, draw) for number, draw, _ in state.draws]
        for simulation in simulations:
            self.simulations[simulation.id] = simulation
            if simulation.status is SimulationStatus.FINISHED:
                self._listeners.simulation_finished(simulation)
            elif simulation.status is SimulationStatus.DROPPED:
                self.nb_given_up += not simulation.is_validation
            else:
                self._to_run_again.append(simulation)
        self._next_id = len(simulations)

    def finish(self) -> None:
        """Wait until the job of every client has ended; no further one is asked for.

        A solver may take its time after its last step; one that takes more than `simulation_timeout` is
        cancelled. Raises what has failed, here or elsewhere.
        """
        self._finishing.set()
        while self._thread.is_alive() and self._ending.error is None:
            self._thread.join(timeout=0.2)
        if self._ending.error is not None:
            raise self._ending.error

    def leave(self) -> None:
        """End the thread without waiting for any client: the launcher ends those."""
        self._leaving.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)

    def count(self, *statuses: SimulationStatus) -> int:
        """Return how many simulations have one of the statuses."""
        # A copy, made at once: the control thread adds simulations meanwhile.
        return sum(simulation.status in statuses for simulation in list(self.simulations.values()))

    def simulation_counts(self) -> dict[str, int]:
        """Return how many simulations are planned, have finished, have failed for good, were run again."""
        counts = {
            "planned": self._plan.nb_simulations,
            "finished": self.count(SimulationStatus.FINISHED),
            "failed": self.nb_given_up,
            "resubmitted": self.nb_resubmitted,
        }
        if self._plan.nb_validation:
            finished = [s for s in list(self.validation.values()) if s.status is SimulationStatus.FINISHED]
            counts |= {"validation_planned": self._plan.nb_validation, "validation_finished": len(finished)}
        return counts

    def describe(self) -> str:
        """Say in one line where the simulations stand."""
        simulations = list(self.simulations.values())
        jobs = Counter(
            "running" if s.job_is_running else "waiting to start" for s in simulations if s.has_job
        )
        connected = sum(
            s.status in (SimulationStatus.CONNECTED, SimulationStatus.RUNNING) for s in simulations
        )
        finished = sum(s.status is SimulationStatus.FINISHED for s in simulations)
        return (
            f"of {self._plan.nb_simulations} simulations {finished} have finished, {self.nb_given_up} were "
            f"given up, {jobs['running']} clients are running ({connected} connected), "
            f"{jobs['waiting to start']} wait to start"
        )

    # The thread.

    def _run(self) -> None:
        try:
            while not self._leaving.is_set():
                self.step()
                self._states.answer()
                if self._finishing.is_set() and not self._live_jobs():
                    return
        except ChannelClosed as error:
            self._fail(FatalError(f"the launcher is gone ({error}): the server ends the study"))
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._ending.fail(error)
        self._report_failure(error)

    def step(self) -> None:
        """Do once all that there is to do; waits for news of the simulations for a moment at most."""
        self._follow(self.POLL_INTERVAL)
        forward_extension_log()
        while (message := self._link.receive(0)) is not None:
            self._launcher_heard_at = time.monotonic()
            self._take(message)
        now = time.monotonic()
        silence = now - self._launcher_heard_at
        if self._plan.launcher_timeout is not None and silence > self._plan.launcher_timeout:
            raise FatalError(f"nothing came from the launcher for {silence:.0f} s: the server ends the study")
        # The receiver has logged them; the last ones explain why a client fails.
        self._refusals.extend(self._receiver.refusals())
        if self._ending.stop_reason is not None:
            self._wind_down(now, self._ending.stop_reason)
        elif self._finishing.is_set():
            self._wait_for_jobs(now)
        else:
            self._watch(now)
            self._submit()
        self._look_for_the_end()
        if now - self._progress_at >= self.PROGRESS_PERIOD or self._finishing.is_set():
            self._progress_at = now
            self._tell_progress(now)

    def _state(self) -> StudyState:
        return StudyState.of_simulations(
            self.simulations.values(),
            self._with_parameters(self._draws),
            self.nb_resubmitted,
            self._expected_steps,
            self.validation.values(),
            self._with_parameters(self._validation_draws),
        )

    def _with_parameters(self, draws: list[tuple[int, int]]) -> list[tuple[int, int, list[Any]]]:
        return [(number, draw, self._registry.parameters(number, draw) or []) for number, draw in draws]

    def _find(self, simulation_id: int) -> Simulation | None:
        return self.simulations.get(simulation_id) or self.validation.get(simulation_id)

    def _live_jobs(self) -> list[Simulation]:
        simulations = (*self.validation.values(), *self.simulations.values())
        return [simulation for simulation in simulations if simulation.has_job]

    # Messages of the launcher.

    def _take(self, message: Message) -> None:
        match message:
            case JobUpdate():
                self._update_job(message)
            case Stop():
                logger.info(f"the launcher asks the server to stop: {message.reason}")
                self._ending.stop(message.reason, status=143)
            case Ping():
                pass
            case _:
                logger.warning(
                    f"the launcher sent a {type(message).__name__}, which is no message for a server"
                )

    def _update_job(self, update: JobUpdate) -> None:
        simulation_text, _, attempt_text = update.job_id.partition(".")
        simulation = self._find(int(simulation_text)) if simulation_text.isdecimal() else None
        if simulation is None or not attempt_text.isdecimal():
            logger.warning(f"the launcher sent the state of a job {update.job_id!r} that nobody asked for")
            return
        if int(attempt_text) != simulation.attempt or not simulation.has_job:
            return  # an attempt that was given up before
        if update.job_state is State.RUNNING:
            simulation.job_is_running = True
            simulation.job_since = time.monotonic()
        if update.job_state is State.RUNNING or update.exit_code is not None:
            self._failed_starts.started()
        if not update.job_state.is_final:
            return
        # What the client's last messages did is known to every receiver before its job can have ended.
        self._settle()
        self._follow(0.0)
        simulation.has_job = simulation.job_is_running = False
        self._cancelled_at.pop(simulation.id, None)
        self._end_of_job(simulation, update)

    def _end_of_job(self, simulation: Simulation, update: JobUpdate) -> None:
        ending = describe_exit(update.exit_code)
        if update.job_state is State.ERROR:
            ending = "could not be started"
        if simulation.status is SimulationStatus.FINISHED:
            if update.job_state is not State.TERMINATED:
                logger.warning(
                    f"client of simulation {simulation.id} {ending}, after it had finished sending"
                )
        elif simulation.is_final or self._ending.stop_reason is not None:
            logger.debug(f"client of simulation {simulation.id} {ending}")
        else:
            self._attempt_failed(simulation, ending, update)

    # Failures.

    def _attempt_failed(self, simulation: Simulation, ending: str, update: JobUpdate) -> None:
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
        self._receiver.abandon_attempt(simulation.id)
        logger.warning(text + details)

        if is_crash:
            self._check_hope(simulation, text, details)
        else:
            others_run = any(other.job_is_running for other in self._live_jobs())
            self._failed_starts.failed(text + details, others_run=others_run)
        nb_time_steps = self._plan.nb_time_steps
        if self._plan.ignore_client_death:
            self._drop(simulation, "is given up; the study goes on without it (ignore_client_death)")
        elif not self._plan.fault_tolerance:
            raise FaultToleranceError(
                f"{text}; launcher_config.fault_tolerance is false, so this ends the study "
                f"(ignore_client_death true would go on without this simulation){details}"
            )
        elif nb_time_steps is not None and simulation.steps_complete >= nb_time_steps:
            # A solver that sends more steps would fail with each attempt; one that died at its end was done.
            self._drop(
                simulation,
                f"is not run again: all its {nb_time_steps} time steps (study_options.nb_time_steps) are "
                "here",
            )
        else:
            self._to_resubmit.append(simulation)

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
            f"the first {HOPELESS} clients {self._what_hopeless_clients_do()}, so the study is stopped. The "
            f"last one: {text}{details}{refusals}\n"
            f"  To try it by hand, without a server: {self._scripts.path(simulation.id)}"
        )

    def _has_proved_the_solver(self) -> bool:
        """Say whether some client has done what clients are for."""
        counters = self._receiver.counters()
        return bool(counters["samples_received"] + counters.get("validation_received", 0) > 0)

    def _what_hopeless_clients_do(self) -> str:
        return "ended before any time step arrived"

    def _drop(self, simulation: Simulation, what: str) -> None:
        logger.warning(f"simulation {simulation.id} {what}")
        simulation.status = SimulationStatus.DROPPED
        simulation.given_up = True
        self.nb_given_up += not simulation.is_validation
        self._receiver.finish(simulation.id, "client_failed")

    # What the receiver knows.

    def _follow(self, timeout: float) -> None:
        for state in self._receiver.changes(timeout):
            self._update_simulation(state)

    def _update_simulation(self, state: ReceptionState) -> None:
        simulation = self._find(state.simulation_id)
        if simulation is None or state.attempt != simulation.attempt or simulation.is_final:
            return
        simulation.steps_complete = state.steps_complete
        simulation.host = state.host
        if state.error:
            self._errors[simulation.id] = state.error
        status = SimulationStatus(state.status)
        if status is not simulation.status:
            logger.debug(f"simulation {simulation.id} (attempt {simulation.attempt}): {status.value}")
        simulation.status = status
        if status is SimulationStatus.DISCONNECTED:
            self._disconnected_at.setdefault(simulation.id, time.monotonic())
        else:
            self._disconnected_at.pop(simulation.id, None)
        if status is SimulationStatus.FINISHED:
            self._finished(simulation)
        elif status is SimulationStatus.SILENT:
            timeout = self._plan.simulation_timeout
            self._cancel(
                simulation,
                f"sent nothing for {timeout:g} s (study_options.simulation_timeout)"
                if timeout
                else "is silent",
            )

    def _finished(self, simulation: Simulation) -> None:
        if simulation.is_validation:
            logger.info(f"validation simulation {simulation.id} has finished sending")
        else:
            logger.info(f"sim-id={simulation.id} has finished sending")
        expected = self._expected_steps
        if expected is None:
            self._expected_steps = simulation.steps_complete
        elif simulation.steps_complete != expected and not self._has_warned_of_steps:
            self._has_warned_of_steps = True
            source = (
                "study_options.nb_time_steps is" if self._plan.nb_time_steps else "the first one to end sent"
            )
            logger.warning(
                f"simulation {simulation.id} sent {simulation.steps_complete} time steps, but {source} "
                f"{expected}; further ones that differ are not reported"
            )
        if self._plan.remove_client_scripts:
            self._scripts.remove(simulation.id)
        if not simulation.is_validation:
            self._listeners.simulation_finished(simulation)

    def _look_for_the_end(self) -> None:
        if self._is_over or not self._receiver.reception_over:
            return
        self._is_over = True
        self._listeners.reception_over()
        if self._ending.stop_reason is None and self._receiver.counters()["samples_received"] == 0:
            raise FatalError(
                f"no time step arrived from any of the {self._plan.nb_simulations} simulations, so there is "
                f"nothing to train on.{self._last_failure()}"
            )

    def _last_failure(self) -> str:
        last = self._fruitless[-1] if self._fruitless else self._failed_starts.last
        return f" The last one: {last}" if last else ""

    # Asking for clients.

    def _submit(self) -> None:
        if self._failed_starts.is_pausing:
            return
        free = self._plan.jobs_at_once - len(self._live_jobs())
        while free > 0:
            if self._to_run_again:
                simulation = self._to_run_again.popleft()
                self._run_again(simulation)
            elif self._to_resubmit:
                simulation = self._to_resubmit.popleft()
                self._prepare_again(simulation)
            elif len(self.validation) < self._plan.nb_validation:
                simulation = self._begin_validation()
            elif self._next_id < self._plan.nb_simulations:
                simulation = Simulation(self._next_id)
                self.simulations[simulation.id] = simulation
                self._next_id += 1
                tokens = self._draw(simulation)
                script = self._scripts.write(simulation.id, tokens)
                logger.info(f"created {script.name} with parameters [{', '.join(tokens)}]")
            else:
                return
            self._submit_attempt(simulation)
            free -= 1

    def _run_again(self, simulation: Simulation) -> None:
        self._scripts.write(simulation.id, simulation.words)
        logger.info(
            f"{'validation ' * simulation.is_validation}simulation {simulation.id} is run again after the "
            "restart, with the same parameters; "
            f"{simulation.steps_complete} of its time steps are here"
        )

    def _begin_validation(self) -> Simulation:
        # No line as for the others: tools count those.
        simulation = Simulation(self._plan.nb_simulations + len(self.validation), is_validation=True)
        self.validation[simulation.id] = simulation
        tokens = self._draw(simulation)
        script = self._scripts.write(simulation.id, tokens)
        logger.info(
            f"validation simulation {simulation.id} runs {script.name} with parameters {', '.join(tokens)}"
        )
        return simulation

    def _prepare_again(self, simulation: Simulation) -> None:
        self.nb_resubmitted += not simulation.is_validation
        if simulation.failures_of_draw <= self._plan.crashes_before_redraw:
            logger.info(f"simulation {simulation.id} is submitted again, with the same parameters")
            return
        simulation.draw += 1
        simulation.failures_of_draw = 0
        tokens = self._draw(simulation)
        self._scripts.write(simulation.id, tokens)
        logger.info(
            f"simulation {simulation.id} failed {simulation.failures} times: it is submitted again with "
            f"fresh parameters ({', '.join(tokens)})"
        )

    def _draw(self, simulation: Simulation) -> list[str]:
        """Draw parameters for a simulation; return them as its solver's command line has them."""
        draw = self._draw_validation() if simulation.is_validation else self._draw_parameters()
        simulation.parameters = plain_list(draw.parameters)
        self._registry.record(simulation.id, simulation.draw, simulation.parameters)
        draws = self._validation_draws if simulation.is_validation else self._draws
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
        self._disconnected_at.pop(simulation.id, None)
        simulation.has_job = True
        simulation.job_since = time.monotonic()
        script = str(self._scripts.path(simulation.id))
        environment = self._client_environment(simulation)
        self._link.send(SubmitClient(simulation.id, simulation.attempt, script, environment))

    def _client_environment(self, simulation: Simulation) -> dict[str, str]:
        return {
            "MELISSA_SIMU_ID": str(simulation.id),
            "MELISSA_SIM_ID": str(simulation.id),
            "MELISSA_ATTEMPT": str(simulation.attempt),
        }

    def _cancel(self, simulation: Simulation, reason: str) -> None:
        """Have the launcher end a client's job; what follows is decided when the job has ended."""
        if simulation.id in self._cancelled_at:
            return
        simulation.cancelled_because = reason
        if simulation.has_job:
            logger.warning(f"client of simulation {simulation.id} {reason}: it is cancelled")
            self._cancelled_at[simulation.id] = time.monotonic()
            self._link.send(CancelClient(simulation.id, simulation.attempt))

    # Who waits for whom.

    def _watch(self, now: float) -> None:
        """Look for clients that hold the study up."""
        timeout = self._plan.simulation_timeout
        for simulation in self._live_jobs():
            lost_at = self._disconnected_at.get(simulation.id)
            if timeout is not None and lost_at is not None and now - lost_at > timeout:
                self._cancel(simulation, f"lost its connection and has not come back for {timeout:g} s")
        if now - self._reminder_at < self.REMINDER_PERIOD:
            return
        self._reminder_at = now
        for simulation in self._live_jobs():
            waited = now - simulation.job_since
            cancelled_at = self._cancelled_at.get(simulation.id)
            if cancelled_at is not None and now - cancelled_at > self.CANCEL_GRACE:
                logger.warning(f"the launcher has not ended the client of simulation {simulation.id} yet")
            elif not simulation.job_is_running and waited > self.REMINDER_PERIOD:
                logger.info(
                    f"client of simulation {simulation.id} has waited {waited:.0f} s for the scheduler"
                )
            elif (
                self.WAITS_FOR_CONNECTIONS
                and simulation.status is SimulationStatus.PLANNED
                and waited > self.REMINDER_PERIOD
            ):
                logger.info(
                    f"client of simulation {simulation.id} has run {waited:.0f} s and has not connected: "
                    "its solver has not reached melissa_init yet"
                )

    def _wait_for_jobs(self, now: float) -> None:
        """Training is over, and all that it was made of is here: solvers may still have something to do."""
        jobs = self._live_jobs()
        if self._winding_down_since is None:
            self._winding_down_since = self._reminder_at = now
        waited = now - self._winding_down_since
        timeout = self._plan.simulation_timeout
        if timeout is not None and waited > timeout:
            for simulation in jobs:
                self._cancel(simulation, f"has not ended {timeout:g} s after training")
            self._give_up_on_cancelled(now)
        elif jobs and now - self._reminder_at > self.REMINDER_PERIOD:
            self._reminder_at = now
            logger.info(
                f"training is over; {len(jobs)} clients still run: simulations "
                f"{', '.join(str(simulation.id) for simulation in jobs[:10])}"
            )

    def _wind_down(self, now: float, reason: str) -> None:
        """Stop early: clients that are connected are told so by the receiver, the others are cancelled."""
        if self._winding_down_since is None:
            if self._ending.holds_reception(self._progress.saves_when_stopped):
                return
            self._winding_down_since = now
            logger.info(f"the study stops early: {reason}")
            self._receiver.stop()
            for simulation in self._live_jobs():
                if simulation.status is SimulationStatus.PLANNED:
                    self._cancel(simulation, "is not needed any more")
        elif now - self._winding_down_since > self.STOP_GRACE:
            for simulation in self._live_jobs():
                self._cancel(simulation, f"has not ended within {self.STOP_GRACE:g} s of being told to stop")
            self._give_up_on_cancelled(now)

    def _give_up_on_cancelled(self, now: float) -> None:
        for simulation in self._live_jobs():
            if now - self._cancelled_at.get(simulation.id, now) > self.CANCEL_GRACE:
                logger.warning(
                    f"the launcher has not ended the client of simulation {simulation.id}; left to it"
                )
                simulation.has_job = False

    # Progress.

    def _tell_progress(self, now: float) -> None:
        figures = self._figures()
        values = study_figures(figures)
        values |= self._rates.at(now, values["samples_delivered"], values["batches"])
        self._progress.samples_per_second_of_all = values["samples_per_second"]
        phase = self._progress.phase
        values["phase"] = "draining" if phase == "training" and self._is_over else phase
        self._link.send(Progress(self._simulation_figures() | values))
        self._listeners.tick(figures[0].counters)
        if self._watch_ranks is not None:
            self._watch_ranks(figures, self._live_jobs())

    def _simulation_figures(self) -> dict[str, Any]:
        counts = self.simulation_counts()
        running = sum(simulation.job_is_running for simulation in self.simulations.values())
        return {f"simulations_{name}": number for name, number in counts.items()} | {
            "simulations_running": running
        }
