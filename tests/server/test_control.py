"""The control thread's decisions, step by step, with a receiver and a launcher that the test plays."""

import time
from collections import deque
from types import SimpleNamespace

import pytest

from melissa.exceptions import ConfigurationFileError, FatalError, FaultToleranceError
from melissa.launcher.message import CancelClient, JobUpdate, Ping, Progress, Stop, SubmitClient
from melissa.scheduler.job import State
from melissa.server import failed_starts
from melissa.server.client_script import ClientScripts
from melissa.server.control import Draw, Listeners, StudyControl, StudyPlan
from melissa.server.ending import StudyEnding
from melissa.server.failed_starts import FailedStarts
from melissa.server.parameter_registry import ParameterRegistry
from melissa.server.progress import StudyProgress
from melissa.server.simulation import SimulationStatus
from melissa.utility.channel import ChannelClosed


class PlayedReceiver:
    """Reports the states that the test gives it and keeps what it is told."""

    def __init__(self):
        self.states = deque()
        self.registered = []
        self.abandoned = []
        self.given_up = {}
        self.texts = []
        self.samples = 0
        self.reception_over = False
        self.stopped = False

    def changes(self, timeout):
        states = list(self.states)
        self.states.clear()
        return states

    def report(self, simulation_id, status, attempt=1, steps=0, error=""):
        state = SimpleNamespace(simulation_id=simulation_id, attempt=attempt, draw=0, status=status)
        state.steps_complete, state.host, state.error = steps, "here", error
        self.states.append(state)

    def register(self, simulation_id, attempt, draw, parameters):
        self.registered.append((simulation_id, attempt, draw, list(parameters)))

    def abandon_attempt(self, simulation_id):
        self.abandoned.append(simulation_id)

    def finish(self, simulation_id, reason):
        self.given_up[simulation_id] = reason

    def refusals(self):
        texts, self.texts = self.texts, []
        return texts

    def counters(self):
        return {"samples_received": self.samples, "room_wait_s": 0.0}

    def ledger(self, final_reason=None):
        return {"trained": 0}

    def stop(self):
        self.stopped = True


class PlayedLauncher:
    def __init__(self):
        self.sent = []
        self.waiting = deque()
        self.is_gone = False

    def send(self, message):
        if self.is_gone:
            raise ChannelClosed("the peer is gone")
        self.sent.append(message)

    def receive(self, timeout):
        if self.is_gone:
            raise ChannelClosed("the peer is gone")
        return self.waiting.popleft() if self.waiting else None

    def update(self, job_id, state, exit_code=None, error=""):
        self.waiting.append(JobUpdate(job_id, state, exit_code, error))

    def submitted(self):
        return [(m.simulation_id, m.attempt) for m in self.sent if isinstance(m, SubmitClient)]

    def cancelled(self):
        return [(m.simulation_id, m.attempt) for m in self.sent if isinstance(m, CancelClient)]


class Study:
    def __init__(self, tmp_path, draw=None, nb_parameters=2, listeners=None, **plan):
        self.receiver, self.launcher = PlayedReceiver(), PlayedLauncher()
        self.registry, self.ending, self.failures = ParameterRegistry(), StudyEnding(), []
        self.drawn = 0
        values = {"nb_simulations": 4, "nb_time_steps": 10, "jobs_at_once": 2} | plan
        self.control = StudyControl(
            StudyPlan(nb_parameters=nb_parameters, **values),
            draw=draw or self.draw,
            scripts=ClientScripts(tmp_path, "./solve"),
            receiver=self.receiver,
            link=self.launcher,
            registry=self.registry,
            progress=StudyProgress(),
            ending=self.ending,
            report_failure=self.failures.append,
            listeners=listeners,
        )

    def draw(self):
        self.drawn += 1
        return Draw([self.drawn, 0.5], [self.drawn, 0.5])

    def step(self, times=1):
        for _ in range(times):
            self.control.step()

    @staticmethod
    def wait_for(condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def fail(self, simulation_id, attempt=1, exit_code=1, error="boom"):
        self.launcher.update(f"{simulation_id}.{attempt}", State.FAILED, exit_code, error)
        self.step()

    def finish(self, simulation_id, attempt=1):
        self.receiver.report(simulation_id, "finished", attempt, steps=10)
        self.step()
        self.launcher.update(f"{simulation_id}.{attempt}", State.TERMINATED, 0)
        self.step()


@pytest.fixture
def make(tmp_path):
    return lambda **options: Study(tmp_path, **options)


def test_clients_are_asked_for_up_to_the_limit_and_in_order_of_ids(make):
    study = make()
    study.step(3)
    assert study.launcher.submitted() == [(0, 1), (1, 1)]
    study.receiver.samples = 5
    study.finish(1)
    study.finish(0)
    assert study.launcher.submitted() == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_the_receiver_knows_an_attempt_with_its_parameters_before_the_launcher(make):
    study = make()
    known = []
    send = study.launcher.send
    study.launcher.send = lambda message: (known.append(len(study.receiver.registered)), send(message))
    study.step()
    assert known[:2] == [1, 2]
    assert study.receiver.registered == [(0, 1, 0, [1.0, 0.5]), (1, 1, 0, [2.0, 0.5])]
    assert study.registry.parameters(1, 0) == [2, 0.5]
    assert type(study.registry.parameters(1, 0)[0]) is int


def test_each_script_is_logged_once_in_the_form_that_tools_parse(make, log):
    study = make()
    study.step(2)
    lines = [r.getMessage() for r in log.records if "created client" in r.getMessage()]
    assert lines == [
        "created client.0.sh with parameters [1, 0.5]",
        "created client.1.sh with parameters [2, 0.5]",
    ]
    study.receiver.samples = 1
    study.fail(0)
    assert study.launcher.submitted()[-1] == (0, 2)
    assert sum("created client" in r.getMessage() for r in log.records) == 2


def test_the_environment_of_a_client_names_simulation_and_attempt(make):
    study = make()
    study.step()
    submit = next(m for m in study.launcher.sent if isinstance(m, SubmitClient))
    assert submit.environment == {"MELISSA_SIMU_ID": "0", "MELISSA_SIM_ID": "0", "MELISSA_ATTEMPT": "1"}
    assert submit.script.endswith("client_scripts/client.0.sh")


def test_a_finished_simulation_is_logged_and_told(make, log):
    finished = []
    study = make(listeners=Listeners(simulation_finished=lambda s: finished.append(s.simulation_id)))
    study.step()
    study.finish(1)
    assert "sim-id=1 has finished sending" in log.text
    assert finished == [1]
    assert study.control.count(SimulationStatus.FINISHED) == 1


def test_another_number_of_steps_is_said_with_both_numbers(make, log):
    study = make()
    study.step()
    study.receiver.report(0, "finished", steps=7)
    study.step()
    assert "sent 7 time steps" in log.text
    assert "nb_time_steps is 10" in log.text


def test_a_simulation_that_differs_from_the_first_is_said_when_the_number_was_not_given(make, log):
    study = make(nb_time_steps=None)
    study.step()
    study.receiver.report(0, "finished", steps=10)
    study.receiver.report(1, "finished", steps=9)
    study.step()
    assert "sent 9 time steps, but the first one to end sent 10" in log.text


def test_a_failed_client_runs_again_with_the_same_parameters_then_with_fresh_ones(make):
    study = make(nb_simulations=1, crashes_before_redraw=2)
    study.receiver.samples = 1
    study.step()
    for attempt in (1, 2, 3):
        study.fail(0, attempt)
    draws = [(attempt, draw, parameters) for _, attempt, draw, parameters in study.receiver.registered]
    assert draws == [(1, 0, [1.0, 0.5]), (2, 0, [1.0, 0.5]), (3, 0, [1.0, 0.5]), (4, 1, [2.0, 0.5])]
    assert study.registry.parameters(0, 0) == [1, 0.5]
    assert study.registry.parameters(0, 1) == [2, 0.5]
    assert study.receiver.abandoned == [0, 0, 0]
    assert study.control.nb_resubmitted == 3


def test_status_0_without_finalize_is_a_failure_with_that_reason(make, log):
    study = make()
    study.receiver.samples = 1
    study.step()
    study.launcher.update("0.1", State.TERMINATED, 0)
    study.step()
    assert "without melissa_finalize" in log.text
    assert (0, 2) in study.launcher.submitted()


def test_a_client_that_fails_after_its_last_step_is_no_failure(make, log):
    study = make()
    study.step()
    study.receiver.report(0, "finished", steps=10)
    study.launcher.update("0.1", State.FAILED, -11)
    study.step()
    assert "after it had finished sending" in log.text
    assert (0, 2) not in study.launcher.submitted()


def test_the_end_of_an_attempt_that_was_given_up_is_nothing_new(make):
    study = make(nb_simulations=1)
    study.receiver.samples = 1
    study.step()
    study.fail(0)
    study.fail(0, attempt=1)
    assert study.launcher.submitted() == [(0, 1), (0, 2)]


def test_a_silent_client_is_cancelled_and_runs_again_when_its_job_has_ended(make, log):
    study = make(simulation_timeout=5.0)
    study.receiver.samples = 1
    study.step()
    study.receiver.report(0, "silent", steps=2)
    study.step(2)
    assert study.launcher.cancelled() == [(0, 1)]
    assert (0, 2) not in study.launcher.submitted()
    study.fail(0, exit_code=-15, error="")
    assert (0, 2) in study.launcher.submitted()
    assert "sent nothing for 5 s" in log.text


def test_a_client_that_lost_its_connection_for_too_long_is_cancelled(make):
    study = make(simulation_timeout=1e-9)
    study.receiver.samples = 1
    study.step()
    study.receiver.report(0, "disconnected", steps=2)
    study.step(2)
    assert study.launcher.cancelled() == [(0, 1)]


def test_a_hopeless_solver_stops_the_study_with_its_last_words_and_what_was_refused(make):
    study = make(jobs_at_once=3)
    study.step()
    study.receiver.texts = ["client 0 declared the field 'temp'; the study has temperature"]
    study.fail(0)
    study.fail(1)
    with pytest.raises(FatalError) as error:
        study.fail(2, exit_code=127, error="solve: not found\nsecond line")
    text = str(error.value)
    for part in (
        "first 3 clients",
        "status 127",
        "solve: not found",
        "second line",
        "field 'temp'",
        "client.2.sh",
    ):
        assert part in text


def test_a_solver_that_has_delivered_something_is_not_hopeless(make):
    study = make(jobs_at_once=4)
    study.step()
    study.receiver.samples = 1
    for simulation_id in range(4):
        study.fail(simulation_id)
    assert len(study.launcher.submitted()) == 8


REFUSED = "cannot submit it: sbatch: invalid partition specified: gpus"


def test_clients_that_could_not_be_started_have_not_crashed_and_are_asked_for_again(make, log, monkeypatch):
    monkeypatch.setattr(FailedStarts, "FIRST_PAUSE", 0.0)
    study = make(nb_simulations=2, crashes_before_redraw=0)
    study.step()
    study.launcher.update("0.1", State.RUNNING)
    for attempt in range(1, 6):
        study.launcher.update(f"1.{attempt}", State.ERROR, None, REFUSED)
        study.step()
    assert study.launcher.submitted()[-1] == (1, 6)
    simulation = study.control.simulations[1]
    assert (simulation.failures, simulation.failures_of_draw, simulation.draw) == (0, 0, 0)
    assert f"(attempt 5) could not be started\n  what the scheduler said:\n    {REFUSED}" in log.text
    assert "stderr" not in log.text


def test_while_clients_cannot_be_started_no_further_one_is_asked_for_at_once(make, monkeypatch):
    study = make()
    study.step()
    study.launcher.update("0.1", State.RUNNING)
    study.launcher.update("1.1", State.ERROR, None, REFUSED)
    study.step(3)
    assert study.launcher.submitted() == [(0, 1), (1, 1)]
    later = time.monotonic() + FailedStarts.FIRST_PAUSE
    monkeypatch.setattr(failed_starts, "time", SimpleNamespace(monotonic=lambda: later))
    study.step()
    assert study.launcher.submitted()[2:] == [(1, 2)]


def test_the_pause_doubles_with_each_round_until_a_client_was_started(monkeypatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(failed_starts, "time", clock)
    starts, pauses = FailedStarts(), []
    for _ in range(8):
        for _ in range(3):
            starts.failed("refused", others_run=True)
        begin = clock.now
        while starts.is_pausing:
            clock.now += 1.0
        pauses.append(clock.now - begin)
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    starts.started()
    starts.failed("refused", others_run=True)
    clock.now += 2.0
    assert not starts.is_pausing


def test_three_clients_that_cannot_even_be_started_stop_the_study_with_the_scheduler_s_words(make):
    study = make(jobs_at_once=3)
    study.receiver.samples = 1  # of earlier clients: that the solver works does not make it start
    study.step()
    for simulation_id in range(3):
        study.launcher.update(f"{simulation_id}.1", State.ERROR, None, REFUSED)
    with pytest.raises(FatalError) as error:
        study.step()
    text = str(error.value)
    for part in ("3 clients in a row could not be started", "simulation 2", REFUSED, "scheduler_arg_client"):
        assert part in text
    for part in ("stderr", "by hand", "crash"):
        assert part not in text


def test_without_fault_tolerance_a_failed_client_ends_the_study(make):
    study = make(fault_tolerance=False)
    study.receiver.samples = 1
    study.step()
    with pytest.raises(
        FaultToleranceError, match=r"simulation 1 \(attempt 1\) ended with status 3(.|\n)*boom"
    ):
        study.fail(1, exit_code=3)


@pytest.mark.parametrize("fault_tolerance", [True, False])
def test_with_ignore_client_death_a_failed_client_is_dropped_with_its_reason(make, fault_tolerance):
    study = make(fault_tolerance=fault_tolerance, ignore_client_death=True)
    study.receiver.samples = 1
    study.step()
    study.fail(0)
    assert study.receiver.given_up == {0: "client_failed"}
    assert study.launcher.submitted() == [(0, 1), (1, 1), (2, 1)]
    assert study.control.count(SimulationStatus.DROPPED) == study.control.nb_given_up == 1


def test_a_study_without_any_time_step_says_so(make):
    study = make(nb_simulations=2, ignore_client_death=True)
    study.step()
    study.fail(0)
    study.receiver.reception_over = True
    with pytest.raises(FatalError, match=r"no time step arrived from any of the 2 simulations"):
        study.fail(1)


def test_a_stop_of_the_launcher_tells_the_clients_and_cancels_those_that_never_connected(make):
    study = make()
    study.step()
    study.receiver.report(0, "running", steps=3)
    study.step()
    study.launcher.waiting.append(Stop("the user said so"))
    study.step()
    assert study.ending.stop_reason == "the user said so"
    assert study.receiver.stopped
    assert study.launcher.cancelled() == [(1, 1)]
    study.launcher.update("0.1", State.TERMINATED, 0)
    study.launcher.update("1.1", State.FAILED, -15)
    study.step()
    assert study.launcher.submitted() == [(0, 1), (1, 1)]
    assert study.receiver.abandoned == []


def test_a_client_that_does_not_stop_is_cancelled(make):
    study = make()
    study.control.STOP_GRACE = 0.0
    study.step()
    study.receiver.report(0, "running", steps=3)
    study.receiver.report(1, "running", steps=3)
    study.step()
    study.ending.stop("enough")
    study.step(2)
    assert sorted(study.launcher.cancelled()) == [(0, 1), (1, 1)]


def test_the_thread_ends_when_every_job_has(make):
    study = make(nb_simulations=1)
    study.control.start()
    study.wait_for(study.launcher.submitted)
    study.receiver.report(0, "finished", steps=10)
    study.launcher.update("0.1", State.TERMINATED, 0)
    study.control.finish()
    assert study.control.count(SimulationStatus.FINISHED) == 1


def test_an_error_of_the_thread_is_reported_and_raised_where_training_looks(make):
    def draw():
        raise ValueError("no more parameters")

    study = make(draw=draw)
    study.control.start()
    study.wait_for(lambda: study.failures)
    with pytest.raises(ValueError, match="no more parameters"):
        study.control.finish()
    assert [str(error) for error in study.failures] == ["no more parameters"]
    with pytest.raises(ValueError, match="no more parameters"):
        study.ending.check()


def test_the_death_of_the_launcher_ends_the_study(make):
    study = make()
    study.launcher.is_gone = True
    study.control.start()
    with pytest.raises(FatalError, match="the launcher is gone"):
        study.control.finish()


def test_a_launcher_that_says_nothing_is_dead(make):
    study = make(launcher_timeout=0.1)
    study.control._launcher_heard_at -= 1.0
    with pytest.raises(FatalError, match="nothing came from the launcher for 1 s"):
        study.step()
    study.launcher.waiting.append(Ping())
    study.step()


def test_too_few_parameters_are_an_error_with_both_numbers(make):
    study = make(nb_parameters=3)
    with pytest.raises(ConfigurationFileError, match=r"2 parameters were drawn(.|\n)*nb_parameters\s+is 3"):
        study.step()


def test_words_and_strings_are_written_as_they_are_and_numbers_travel(make, log):
    study = make(draw=lambda: Draw(["--heat", 1.5, "steel"], ["--heat", 1.5, "'steel'"]))
    study.step()
    numbers = study.receiver.registered[0][3]
    assert numbers[0] == 1.5
    assert numbers[1] != numbers[1]
    assert study.registry.parameters(0, 0) == ["--heat", 1.5, "steel"]
    assert "parameters [--heat, 1.5, 'steel']" in log.text
    assert "no numbers" in log.text


def test_progress_has_what_the_launcher_shows(make):
    study = make()
    study.step()
    values = next(m for m in study.launcher.sent if isinstance(m, Progress)).values
    for key in (
        "simulations_planned", "simulations_running", "simulations_finished", "simulations_failed",
        "simulations_resubmitted", "samples_received", "samples_trained", "samples_expected", "batches",
        "batches_expected", "samples_per_second", "batches_per_second", "population", "capacity", "watermark",
        "trainer_wait_s", "receiver_wait_s", "losses", "phase",
    ):  # fmt: skip
        assert key in values


def test_the_scripts_of_finished_simulations_go_if_asked(make, tmp_path):
    study = make(remove_client_scripts=True)
    study.step()
    assert (tmp_path / "client_scripts/client.0.sh").exists()
    study.finish(0)
    assert not (tmp_path / "client_scripts/client.0.sh").exists()
    assert (tmp_path / "client_scripts/client.1.sh").exists()


def test_simulations_for_validation_come_first_and_are_none_of_the_others(tmp_path, log):
    finished = []
    listeners = Listeners(simulation_finished=lambda simulation: finished.append(simulation.id))
    study = Study(
        tmp_path, nb_simulations=2, nb_validation=2, jobs_at_once=3, nb_time_steps=None, listeners=listeners
    )
    study.control._draw_validation = lambda: Draw([7.0, 7.0], [7.0, 7.0])
    study.step()
    assert study.launcher.submitted() == [(2, 1), (3, 1), (0, 1)]
    assert study.receiver.registered[0] == (2, 1, 0, [7.0, 7.0])
    assert study.receiver.registered[2] == (0, 1, 0, [1.0, 0.5])
    study.receiver.report(2, "finished", steps=10)
    study.receiver.report(0, "finished", steps=10)
    study.launcher.update("3.1", State.FAILED, 1, "no licence")
    study.step()
    # The one that failed is run again before any further one.
    assert study.launcher.submitted()[3:] == [(3, 2)]
    assert finished == [0]
    assert study.control.simulation_counts() == {
        "planned": 2,
        "finished": 1,
        "failed": 0,
        "resubmitted": 0,
        "validation_planned": 2,
        "validation_finished": 1,
    }
    created = [r.getMessage() for r in log.records if "created client" in r.getMessage()]
    assert created == ["created client.0.sh with parameters [1, 0.5]"]
    assert "validation simulation 2 runs client.2.sh with parameters 7.0, 7.0" in log.text
    assert "validation simulation 2 has finished sending" in log.text
    assert "sim-id=2 " not in log.text


def test_a_simulation_for_validation_that_is_given_up_is_told_to_the_receiver(tmp_path):
    study = Study(tmp_path, nb_simulations=2, nb_validation=1, ignore_client_death=True)
    study.step()
    study.launcher.update("2.1", State.FAILED, 1)
    study.step()
    assert study.receiver.given_up == {2: "client_failed"}
    assert study.control.nb_given_up == 0
