"""The control thread: asks the launcher for clients, follows simulations, decides what follows a failure.

One thread does all that is done per simulation, so that its state needs no lock. It never calls MPI, and
nothing per time step passes through it. Here is what it hears, from the launcher and from the receiver; what
it does about that stands in `client_requests` (which client is asked for next), `failed_attempts` (what
follows a failure) and `client_watch` (who waits for whom, and the end).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

from melissa.exceptions import FatalError
from melissa.launcher.message import JobUpdate, Message, Ping, Progress, Stop
from melissa.scheduler.job import State
from melissa.server.checkpoint.study_state import StateRequests, StudyState
from melissa.server.client_requests import ClientRequests
from melissa.server.client_script import ClientScripts
from melissa.server.client_watch import ClientWatch
from melissa.server.ending import StudyEnding
from melissa.server.extension_log import forward_extension_log
from melissa.server.failed_attempts import FailedAttempts
from melissa.server.figures import RankFigures, study_figures
from melissa.server.link import Link
from melissa.server.parameter_registry import ParameterRegistry
from melissa.server.progress import StudyProgress, StudyRates
from melissa.server.roster import Roster
from melissa.server.simulation import Simulation, SimulationStatus
from melissa.server.study_plan import Draw, Listeners, StudyPlan
from melissa.server.study_receiver import ReceptionState, StudyReceiver
from melissa.utility.channel import ChannelClosed
from melissa.utility.process import describe_exit

__all__ = ["Draw", "Listeners", "StudyControl", "StudyPlan"]

logger = logging.getLogger("melissa")


class StudyControl:
    """Runs the ensemble; see the module's text.

    `draw` gives one client's parameters and is called in the control thread; `report_failure`
    tells the launcher of an error of this thread at once, since training may be far from its next look at
    `ending`. `figures` gives those of all server ranks. Where there are several, `settle` returns when this
    one knows all that the others know, and `watch_ranks` looks for ranks that wait for each other.
    """

    POLL_INTERVAL = 0.05  # seconds, as all below
    PROGRESS_PERIOD = 0.5
    STOP_GRACE = 2.0
    WAITS_FOR_CONNECTIONS = True
    """Whether clients are to connect."""
    WHAT_HOPELESS_CLIENTS_DO = "ended before any time step arrived"
    CLIENT_ENVIRONMENT: ClassVar[dict[str, str]] = {}
    """What clients find in their environment beside the names of simulation and attempt."""

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

        self._roster = Roster()
        self._requests = ClientRequests(
            plan,
            draw=lambda for_validation: (
                self._draw_validation() if for_validation else self._draw_parameters()
            ),
            scripts=scripts,
            receiver=receiver,
            link=link,
            registry=registry,
            roster=self._roster,
            environment=self.CLIENT_ENVIRONMENT,
        )
        self._failures = FailedAttempts(
            plan,
            scripts,
            has_proved_the_solver=self._has_proved_the_solver,
            what_hopeless_clients_do=self.WHAT_HOPELESS_CLIENTS_DO,
        )
        self._clients = ClientWatch(
            self._roster,
            link,
            plan.simulation_timeout,
            waits_for_connections=self.WAITS_FOR_CONNECTIONS,
        )
        self.nb_given_up = 0
        """Simulations that failed for good; those that an early stop ends are none of them."""
        self._states = StateRequests(self._state)
        self._is_over = False
        self._has_warned_of_steps = False
        self._expected_steps = plan.nb_time_steps
        self._launcher_heard_at = time.monotonic()
        self._progress_at = 0.0
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
        validation = validation or []
        self._roster.validation.update((simulation.id, simulation) for simulation in validation)
        self._roster.simulations.update((simulation.id, simulation) for simulation in simulations)
        self._expected_steps = self._plan.nb_time_steps or state.expected_steps
        self._requests.resume(
            state,
            to_run_again=[each for each in (*validation, *simulations) if not each.is_final],
            with_validation=bool(validation),
        )
        for simulation in simulations:
            if simulation.status is SimulationStatus.FINISHED:
                self._listeners.simulation_finished(simulation)
            elif simulation.status is SimulationStatus.DROPPED:
                self.nb_given_up += not simulation.is_validation

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

    @property
    def simulations(self) -> dict[int, Simulation]:
        """Every simulation that was asked for so far, but for those for validation."""
        return self._roster.simulations

    @property
    def nb_resubmitted(self) -> int:
        """How often a simulation was run again that had failed."""
        return self._requests.nb_resubmitted

    def count(self, *statuses: SimulationStatus) -> int:
        """Return how many simulations have one of the statuses."""
        return self._roster.count(*statuses)

    def simulation_counts(self) -> dict[str, int]:
        """Return how many simulations are planned, have finished, have failed for good, were run again."""
        counts = {
            "planned": self._plan.nb_simulations,
            "finished": self.count(SimulationStatus.FINISHED),
            "failed": self.nb_given_up,
            "resubmitted": self.nb_resubmitted,
        }
        if self._plan.nb_validation:
            finished = self._roster.count_validation(SimulationStatus.FINISHED)
            counts |= {"validation_planned": self._plan.nb_validation, "validation_finished": finished}
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
                if self._finishing.is_set() and not self._roster.live_jobs():
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
        # The receiver has logged them.
        self._failures.were_refused(self._receiver.refusals())
        if self._ending.stop_reason is not None:
            self._wind_down(now, self._ending.stop_reason)
        elif self._finishing.is_set():
            self._clients.wait_for_the_last(now)
        else:
            self._clients.look(now)
            self._submit()
        self._look_for_the_end()
        if now - self._progress_at >= self.PROGRESS_PERIOD or self._finishing.is_set():
            self._progress_at = now
            self._tell_progress(now)

    def _state(self) -> StudyState:
        requests, roster = self._requests, self._roster
        return StudyState.of_simulations(
            roster.simulations.values(),
            requests.with_parameters(requests.draws),
            requests.nb_resubmitted,
            self._expected_steps,
            roster.validation.values(),
            requests.with_parameters(requests.validation_draws),
        )

    def _draw(self, for_validation: bool) -> Draw:
        return self._draw_validation() if for_validation else self._draw_parameters()

    def _submit(self) -> None:
        if self._failures.is_pausing:
            return
        free = self._plan.jobs_at_once - len(self._roster.live_jobs())
        for simulation in self._requests.submit(free):
            self._clients.was_submitted(simulation)

    def _wind_down(self, now: float, reason: str) -> None:
        """Stop early: clients that are connected are told so by the receiver, the others are cancelled."""
        if self._clients.is_stopping:
            self._clients.end_those_left(now, self.STOP_GRACE)
        elif not self._ending.holds_reception(self._progress.saves_when_stopped):
            logger.info(f"the study stops early: {reason}")
            self._receiver.stop()
            self._clients.stop(now)

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
        simulation = self._roster.find(int(simulation_text)) if simulation_text.isdecimal() else None
        if simulation is None or not attempt_text.isdecimal():
            logger.warning(f"the launcher sent the state of a job {update.job_id!r} that nobody asked for")
            return
        if int(attempt_text) != simulation.attempt or not simulation.has_job:
            return  # an attempt that was given up before
        if update.job_state is State.RUNNING:
            simulation.job_is_running = True
            simulation.job_since = time.monotonic()
        if update.job_state is State.RUNNING or update.exit_code is not None:
            self._failures.has_started()
        if not update.job_state.is_final:
            return
        # What the client's last messages did is known to every receiver before its job can have ended.
        self._settle()
        self._follow(0.0)
        simulation.has_job = simulation.job_is_running = False
        self._clients.has_ended(simulation)
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

    def _attempt_failed(self, simulation: Simulation, ending: str, update: JobUpdate) -> None:
        self._receiver.abandon_attempt(simulation.id)
        others_run = any(other.job_is_running for other in self._roster.live_jobs())
        given_up_because = self._failures.judge(simulation, ending, update, others_run=others_run)
        if given_up_because is None:
            self._requests.again(simulation)
        else:
            self._drop(simulation, given_up_because)

    def _has_proved_the_solver(self) -> bool:
        """Say whether some client has done what clients are for."""
        counters = self._receiver.counters()
        return bool(counters["samples_received"] + counters.get("validation_received", 0) > 0)

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
        simulation = self._roster.find(state.simulation_id)
        if simulation is None or state.attempt != simulation.attempt or simulation.is_final:
            return
        simulation.steps_complete = state.steps_complete
        simulation.host = state.host
        if state.error:
            self._failures.connection_failed(simulation, state.error)
        status = SimulationStatus(state.status)
        if status is not simulation.status:
            logger.debug(f"simulation {simulation.id} (attempt {simulation.attempt}): {status.value}")
        simulation.status = status
        self._clients.has_changed(simulation)
        if status is SimulationStatus.FINISHED:
            self._finished(simulation)

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
                f"nothing to train on.{self._failures.last}"
            )

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
            self._watch_ranks(figures, self._roster.live_jobs())

    def _simulation_figures(self) -> dict[str, Any]:
        counts = self.simulation_counts()
        running = sum(simulation.job_is_running for simulation in self.simulations.values())
        return {f"simulations_{name}": number for name, number in counts.items()} | {
            "simulations_running": running
        }
