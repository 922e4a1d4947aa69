"""The slurm scheduler with a Slurm that is slow, full, silent or lies: never two jobs of one attempt."""

import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_slurm import FakeSlurm

from melissa.scheduler import slurm as slurm_module
from melissa.scheduler import slurm_commands, slurm_submissions
from melissa.scheduler.arguments import JobOptions
from melissa.scheduler.job import Job, JobKind, JobRequest, State
from melissa.scheduler.scheduler import SchedulerError
from melissa.scheduler.slurm import SlurmScheduler
from melissa.scheduler.slurm_commands import Command, CommandError, Patience
from melissa.scheduler.slurm_submissions import Submission, Submissions

SOON = 60.0


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A Slurm that the test plays; refused jobs are submitted again without a pause."""
    slurm = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", slurm.path)
    monkeypatch.setattr(slurm_submissions, "FIRST_PAUSE", 0.0)
    yield slurm
    slurm.end()


def wait(condition, turn=lambda: None):
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
        turn()


class Jobs:
    """A scheduler, and the jobs that the test has it submit."""

    def __init__(self, folder, arguments=()):
        self.scheduler = SlurmScheduler(dict.fromkeys(JobKind, JobOptions(tuple(arguments))))
        self.scheduler.start()
        self.folder = folder
        self.all = []
        self.changed = []

    def submit(self, name="7.1"):
        self.all.append(self.scheduler.submit(JobRequest(name, ["/bin/true"], self.folder)))
        return self.all[-1]

    def turn(self):
        """Do what the launcher does in one turn of its loop, when it is time to ask."""
        self.scheduler.ask()
        self.changed += self.scheduler.poll(self.all)

    def wait(self, condition):
        wait(condition, self.turn)

    def wait_for_number(self, job):
        self.wait(lambda: job.number is not None)

    def wait_for_end(self, job):
        self.wait(lambda: job in self.changed and not job.is_alive)


@pytest.fixture
def start(tmp_path, slurm):
    started = []

    def start(*arguments):
        started.append(Jobs(tmp_path, arguments))
        return started[-1]

    yield start
    for program in slurm.PROGRAMS:
        (slurm.folder / f"closed.{program}").unlink(missing_ok=True)
    for jobs in started:
        jobs.scheduler.close(0.0)


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("melissa"), "propagate", True)
    caplog.set_level(logging.DEBUG, logger="melissa")
    return caplog


def warnings(log):
    return [record.getMessage() for record in log.records if record.levelno == logging.WARNING]


# Refusals.

PASSING = [
    "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
    "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
    "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates "
    "accounting/QOS policy (job submit limit, user's size and/or time limits)",
    "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates "
    "accounting/QOS policy (job submit limit, user's size and/or time limits)",
    "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying.",
    "sbatch: error: Batch job submission failed: Resource temporarily unavailable",
]


@pytest.mark.parametrize("text", PASSING)
def test_a_job_that_slurm_refuses_for_now_waits_and_is_submitted_again(slurm, start, log, text):
    slurm.plan(f"refuse {text}", f"refuse {text}")
    jobs = start()
    job = jobs.submit()
    jobs.wait_for_number(job)
    assert job.state is State.WAITING
    assert jobs.changed == []
    assert len(slurm.calls("sbatch")) == 3
    assert list(slurm.jobs) == [job.number]
    (warning,) = warnings(log)
    assert warning == f"Slurm takes no further job, for 0 s now: sbatch: {text}"


MISTAKES = [
    "sbatch: error: invalid partition specified: gpus",
    "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
    "sbatch: unrecognized option '--nodez=3'",
    "sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission failed: Job violates "
    "accounting/QOS policy (job submit limit, user's size and/or time limits)",
]


@pytest.mark.parametrize("text", MISTAKES)
def test_a_job_that_slurm_never_takes_fails_at_once_with_what_it_said(slurm, start, log, text):
    slurm.plan(f"refuse {text}")
    jobs = start()
    job = jobs.submit()
    jobs.wait_for_end(job)
    assert (job.state, job.error) == (State.ERROR, f"cannot submit it: sbatch: {text}")
    assert len(slurm.calls("sbatch")) == 1
    assert warnings(log) == []


def test_without_sbatch_a_job_fails_at_once(start, slurm):
    (slurm.programs / "sbatch").unlink()
    (slurm.programs / "sbatch").symlink_to("nowhere")
    jobs = start()
    job = jobs.submit()
    jobs.wait_for_end(job)
    assert job.state is State.ERROR
    assert job.error.startswith("cannot submit it: sbatch: ")


def test_the_study_ends_when_slurm_has_refused_jobs_for_too_long(slurm, start, monkeypatch):
    slurm.plan(*["refuse Unable to contact slurm controller (connect failure)"] * 2)
    monkeypatch.setattr(Patience, "LIMIT", 0.0)
    jobs = start()
    job = jobs.submit()
    with pytest.raises(SchedulerError, match=r"takes no further job, for \d+ s, so .*: sbatch: Unable to"):
        jobs.wait_for_number(job)
    assert job.state is State.WAITING


class Clock:
    def __init__(self, monkeypatch, *modules):
        self.now = 1000.0
        for module in modules:
            monkeypatch.setattr(module, "time", self)

    def monotonic(self):
        return self.now


class PlayedLane:
    """Keeps what was to be run; the test says what it told."""

    def __init__(self):
        self.then = None
        self.calls = 0

    def run(self, lane, work, then):
        assert self.then is None
        self.then = then
        self.calls += 1

    def tell(self, told):
        then, self.then = self.then, None
        then(told)


@pytest.fixture
def queue(monkeypatch):
    """Submissions without any process: ``lane`` is sbatch, ``clock`` the time, ``numbers`` what was taken."""
    lane, numbers, ended, own = PlayedLane(), [], [], []
    submissions = Submissions(
        lane,
        SimpleNamespace(tell=lambda *words: None),
        taken=lambda submission, number: numbers.append(number),
        ended=ended.append,
        is_crowded=lambda: bool(own),
    )
    job = Job(JobRequest("7.1", [], Path("/")))
    clock = Clock(monkeypatch, slurm_submissions, slurm_commands)
    return SimpleNamespace(
        submissions=submissions,
        lane=lane,
        clock=clock,
        numbers=numbers,
        ended=ended,
        own=own,
        job=job,
        add=lambda: submissions.add(Submission(job, ["sbatch"], "")),
    )


FULL = CommandError("sbatch: QOSMaxSubmitJobPerUserLimit", is_passing=True)
DOWN = CommandError("sbatch: Unable to contact slurm controller (connect failure)", is_passing=True)


def pause(queue):
    """Return after how many seconds the job is submitted again."""
    begin, calls = queue.clock.now, queue.lane.calls
    while queue.lane.calls == calls:
        queue.clock.now += 0.5
        queue.submissions.go_on()
    return queue.clock.now - begin


def test_pauses_double_from_two_seconds_to_a_minute_and_begin_anew_after_a_success(queue):
    queue.add()
    pauses = []
    for _ in range(7):
        queue.lane.tell(DOWN)
        pauses.append(pause(queue))
    assert pauses == [2, 4, 8, 16, 32, 60, 60]
    queue.lane.tell("12\n")
    assert queue.numbers == ["12"]
    queue.add()
    queue.lane.tell(DOWN)
    assert pause(queue) == 2


def test_refusals_are_warned_of_once_a_minute_until_the_study_ends(queue, log):
    queue.add()
    begin = queue.clock.now

    def refuse_until_it_ends():
        while True:
            queue.lane.tell(DOWN)
            pause(queue)

    with pytest.raises(SchedulerError, match="Slurm takes no further job, for 9"):
        refuse_until_it_ends()
    seconds = queue.clock.now - begin
    assert Patience.LIMIT < seconds < Patience.LIMIT + 2 * slurm_submissions.LONGEST_PAUSE
    assert 10 <= len(warnings(log)) <= seconds / Patience.WARNING_PERIOD + 1


def test_a_limit_on_jobs_ends_no_study_that_has_clients_and_a_client_s_end_makes_room(queue):
    queue.own.append("a client")
    queue.add()
    for _ in range(60):
        queue.lane.tell(FULL)
        pause(queue)
    queue.lane.tell(FULL)
    calls = queue.lane.calls
    queue.submissions.go_on()
    assert queue.lane.calls == calls
    queue.submissions.room()
    queue.submissions.go_on()
    assert queue.lane.calls == calls + 1
    queue.own.clear()
    queue.lane.tell(FULL)  # the time in which there were clients does not count


@pytest.mark.parametrize("how", ["cancelled", "refused"])
def test_the_time_in_which_no_job_waits_does_not_count(queue, how):
    queue.add()
    queue.lane.tell(DOWN)
    if how == "cancelled":
        queue.submissions.cancel([queue.job], 1.0)
    else:
        pause(queue)
        queue.lane.tell(CommandError("sbatch: invalid partition specified: gpus"))
    assert queue.ended == [queue.job]
    queue.clock.now += 2 * Patience.LIMIT
    queue.add()
    queue.lane.tell(DOWN)
    assert pause(queue) > 0


# Answers that do not come.


@pytest.mark.parametrize("ended", [False, True])
def test_a_job_whose_number_sbatch_did_not_tell_is_found(slurm, start, ended):
    slurm.plan("take-die")
    jobs = start()
    job = jobs.submit()
    wait(lambda: slurm.jobs)
    if ended:
        slurm.change("1", "COMPLETED")
    jobs.wait_for_number(job)
    assert job.number == "1"
    if ended:
        jobs.wait_for_end(job)
        assert (job.state, job.exit_code) == (State.TERMINATED, 0)
    assert len(slurm.calls("sbatch")) == 1


@pytest.mark.parametrize("kills", [True, False])
def test_a_command_that_does_not_answer_is_ended_and_may_have_done_its_work(monkeypatch, kills):
    monkeypatch.setattr(slurm_commands, "TIMEOUT", 0.2)
    command = Command(["sleep", "100"])
    if not kills:
        monkeypatch.setattr(slurm_commands, "_KILL_TIMEOUT", 0.2)
        monkeypatch.setattr(command, "kill", lambda: None)
    with pytest.raises(CommandError, match=r"sleep has not answered within 0\.2 s") as caught:
        command.run()
    assert caught.value.is_open
    assert caught.value.is_passing
    if not kills:
        command._process.kill()
        command._process.communicate()
    assert command._process.returncode == -signal.SIGKILL


def test_a_job_that_slurm_has_not_got_is_submitted_again_and_runs_alone(slurm, start):
    slurm.plan("die")
    jobs = start()
    job = jobs.submit()
    jobs.wait_for_number(job)
    first, second = slurm.calls("sbatch")
    assert second == [*first, "--dependency=singleton"]
    assert list(slurm.jobs) == [job.number]


def test_while_squeue_does_not_answer_a_job_is_not_submitted_again(slurm, start):
    slurm.plan("die")
    slurm.shatter("squeue", "Unable to contact slurm controller (connect failure)")
    jobs = start()
    job = jobs.submit()
    jobs.wait(lambda: len(slurm.calls("squeue")) >= 4)
    assert job.state is State.WAITING
    assert len(slurm.calls("sbatch")) == 1
    slurm.mend("squeue")
    jobs.wait_for_number(job)
    assert len(slurm.calls("sbatch")) == 2


def test_an_answer_of_squeue_from_before_the_end_of_sbatch_does_not_count(slurm, start):
    jobs = start()
    jobs.wait_for_number(jobs.submit("1.1"))
    slurm.shut("sbatch")
    slurm.plan("take-die")
    job = jobs.submit("2.1")
    slurm.shut("squeue")
    asked = len(slurm.calls("squeue"))
    jobs.wait(lambda: len(slurm.calls("squeue")) > asked)  # it has looked, and found no second job
    slurm.open("sbatch")
    jobs.wait(lambda: len(slurm.jobs) == 2 and jobs.scheduler._submissions.unknown.is_unknown)
    slurm.open("squeue")
    jobs.wait_for_number(job)
    assert len(slurm.calls("sbatch")) == 2


def test_a_job_that_comes_late_is_cancelled_and_the_one_that_is_waited_for_stays(slurm, start, log):
    slurm.plan("die")
    jobs = start()
    job = jobs.submit()
    jobs.wait_for_number(job)
    late = slurm.add(slurm.jobs[job.number]["name"], "RUNNING")
    others = slurm.add("of another program", "RUNNING")
    jobs.wait(lambda: slurm.jobs[late]["state"] == "CANCELLED")
    assert job.is_alive
    assert slurm.jobs[job.number]["state"] == "PENDING"
    assert slurm.jobs[others]["state"] == "RUNNING"
    assert warnings(log)[-1] == f"job {late} came late: nobody waits for it, it is cancelled"


def test_the_user_s_own_name_of_jobs_is_kept_before_the_mark(slurm, start):
    jobs = start("-J 'mö study, 3'", "--dependency=afterok:5")
    slurm.plan("die")
    first, second = jobs.submit(), jobs.submit()
    jobs.wait_for_number(second)
    names = {number: job["name"] for number, job in slurm.jobs.items()}
    assert [name.rpartition("-")[0] for name in names.values()] == ["m_study_3"] * 2
    assert names[first.number] != names[second.number]
    assert not any("--dependency=singleton" in call for call in slurm.calls("sbatch"))


# Nobody waits for Slurm.


def test_while_sbatch_does_not_answer_the_scheduler_does(slurm, start):
    slurm.shut("sbatch")
    jobs = start()
    for number in range(3):
        jobs.submit(f"{number}.1")
    jobs.turn()
    assert jobs.changed == []
    assert [job.state for job in jobs.all] == [State.WAITING] * 3
    slurm.open("sbatch")
    jobs.wait_for_number(jobs.all[-1])
    # One after another, in order.
    assert [job.number for job in jobs.all] == ["1", "2", "3"]


def test_the_descriptor_says_that_there_is_news(slurm, start):
    jobs = start()
    job = jobs.submit()
    poll = select.poll()
    poll.register(jobs.scheduler.fileno(), select.POLLIN)
    while job.number is None:
        assert poll.poll(SOON * 1000)
        jobs.scheduler.poll(jobs.all)
    assert poll.poll(0) == []


def test_a_question_from_before_a_job_had_its_number_does_not_forget_it(slurm, start):
    jobs = start()
    jobs.wait_for_number(jobs.submit("1.1"))
    slurm.shut("squeue")
    asked = len(slurm.calls("squeue"))
    jobs.wait(lambda: len(slurm.calls("squeue")) > asked)
    second = jobs.submit("2.1")
    jobs.wait_for_number(second)
    slurm.open("squeue")
    jobs.wait(lambda: len(slurm.calls("squeue")) > asked + 2)
    assert second.is_alive
    assert slurm.calls("sacct") == []


def test_one_question_at_a_time_is_for_all_jobs(slurm, start):
    jobs = start()
    for number in range(5):
        jobs.submit(f"{number}.1")
    jobs.wait_for_number(jobs.all[-1])
    jobs.wait(lambda: not jobs.scheduler._is_asking)
    slurm.shut("squeue")
    asked = len(slurm.calls("squeue"))
    jobs.wait(lambda: len(slurm.calls("squeue")) > asked)
    for _ in range(3):
        jobs.turn()
    for number in list(slurm.jobs):
        slurm.change(number, "RUNNING")
    slurm.open("squeue")
    jobs.wait(lambda: all(job.state is State.RUNNING for job in jobs.all))
    assert jobs.changed == jobs.all
    assert slurm.calls("sacct") == []


def test_a_controller_that_tells_no_states_is_borne_for_a_while(slurm, start, monkeypatch, log):
    jobs = start()
    job = jobs.submit()
    jobs.wait_for_number(job)
    slurm.shatter("squeue", "Socket timed out on send/recv operation")
    jobs.wait(lambda: warnings(log))
    asked = len(slurm.calls("squeue"))
    jobs.wait(lambda: len(slurm.calls("squeue")) > asked + 2)
    assert job.is_alive
    (warning,) = warnings(log)
    assert warning.startswith("Slurm does not tell the states of jobs, for 0 s now: squeue: ")
    monkeypatch.setattr(Patience, "LIMIT", 0.0)
    with pytest.raises(SchedulerError, match=r"does not tell the states of jobs, for \d+ s, so .*: squeue: "):
        jobs.wait(lambda: False)
    assert job.is_alive
    slurm.mend("squeue")


def test_a_state_that_is_not_known_is_not_the_end(slurm, start, log):
    jobs = start()
    job = jobs.submit()
    jobs.wait_for_number(job)
    slurm.change(job.number, "EXPEDITING")
    asked = len(slurm.calls("squeue"))
    jobs.wait(lambda: len(slurm.calls("squeue")) > asked + 3)
    assert job.is_alive
    assert log.text.count("is EXPEDITING, which is not known") == 1


def test_a_job_that_slurm_has_forgotten_has_failed_in_an_unknown_way(slurm, start):
    jobs = start()
    job = jobs.submit()
    jobs.wait_for_number(job)
    slurm.forget(job.number)
    jobs.wait_for_end(job)
    assert (job.state, job.exit_code) == (State.FAILED, None)
    assert "forgotten by slurm" in job.error


def test_accounting_tells_how_a_forgotten_job_ended_where_there_is_one(slurm, start):
    (slurm.folder / "accounts").write_text("1|CANCELLED by 0|0:15\n2|COMPLETED|0:0\n3|FAILED|3:0\n")
    jobs = start()
    for number in range(3):
        jobs.submit(f"{number}.1")
    jobs.wait_for_number(jobs.all[-1])
    for job in jobs.all:
        slurm.forget(job.number)
    for job in jobs.all:
        jobs.wait_for_end(job)
    assert [job.exit_code for job in jobs.all] == [-15, 0, 3]
    assert [job.state for job in jobs.all] == [State.FAILED, State.TERMINATED, State.FAILED]


# Cancelled on the way.


def test_a_cancelled_job_that_was_queued_is_never_submitted(slurm, start):
    slurm.shut("sbatch")
    jobs = start()
    first, second, third = jobs.submit("1.1"), jobs.submit("2.1"), jobs.submit("3.1")
    jobs.scheduler.cancel([second], 1.0)
    assert jobs.scheduler.poll(jobs.all) == [second]
    assert (second.state, second.exit_code) == (State.FAILED, None)
    assert second.error == "cancelled before it was submitted"
    slurm.open("sbatch")
    jobs.wait_for_number(third)
    assert [first.number, third.number] == ["1", "2"]
    assert len(slurm.calls("sbatch")) == 2


@pytest.mark.parametrize("deed", ["take", "take-die"])
def test_a_job_that_is_cancelled_while_sbatch_runs_is_ended_when_it_is_there(slurm, start, deed):
    slurm.plan(deed)
    slurm.shut("sbatch")
    jobs = start()
    job = jobs.submit()
    jobs.scheduler.cancel([job], 1.0)
    jobs.turn()
    assert job.is_alive
    slurm.open("sbatch")
    jobs.wait_for_end(job)
    assert job.state is State.FAILED
    assert slurm.jobs["1"]["state"] == "CANCELLED"
    assert len(slurm.calls("sbatch")) == 1


@pytest.mark.parametrize("deed", ["die", f"refuse {PASSING[0]}", f"refuse {MISTAKES[0]}"])
def test_a_job_that_is_cancelled_while_sbatch_fails_is_not_submitted_again(slurm, start, deed):
    slurm.plan(deed)
    slurm.shut("sbatch")
    jobs = start()
    job = jobs.submit()
    jobs.scheduler.cancel([job], 1.0)
    slurm.open("sbatch")
    jobs.wait_for_end(job)
    assert (job.state, job.error) == (State.FAILED, "cancelled before it was submitted")
    assert len(slurm.calls("sbatch")) == 1
    assert slurm.jobs == {}


@pytest.mark.parametrize(("youth", "option"), [(1000.0, "--quiet"), (0.0, "--signal=TERM")])
def test_tasks_are_sent_no_signal_while_slurm_starts_them(slurm, start, monkeypatch, youth, option):
    monkeypatch.setattr(slurm_module, "YOUTH", youth)
    jobs = start()
    job = jobs.submit()
    jobs.wait_for_number(job)
    slurm.change(job.number, "RUNNING")
    jobs.wait(lambda: job.state is State.RUNNING)
    jobs.scheduler.cancel([job], 1000.0)
    wait(lambda: slurm.calls("scancel"))
    assert slurm.calls("scancel")[0][-2:] == [option, job.number]


# The end.


def test_close_ends_a_job_whose_sbatch_answers_only_then(slurm, start):
    slurm.shut("sbatch")
    jobs = start()
    jobs.submit("1.1")
    jobs.submit("2.1")
    closing = threading.Thread(target=jobs.scheduler.close, args=(1.0,))
    closing.start()
    slurm.open("sbatch")
    closing.join(SOON)
    assert not closing.is_alive()
    assert {number: job["state"] for number, job in slurm.jobs.items()} == {"1": "CANCELLED"}
    assert len(slurm.calls("sbatch")) == 1


def test_close_in_haste_leaves_a_job_whose_sbatch_does_not_answer_to_the_guard(slurm, start, log):
    slurm.plan("take-hang")
    jobs = start()
    jobs.submit()
    jobs.wait(lambda: slurm.jobs)
    jobs.scheduler.close(0.0)
    (job,) = slurm.jobs.values()
    assert f"Slurm may have a job {job['name']}, or not" in log.text
    wait(lambda: slurm.jobs["1"]["state"] == "CANCELLED")


SUBMIT = """
import sys, time
from pathlib import Path
from melissa.scheduler.job import JobRequest
from melissa.scheduler.slurm import SlurmScheduler
scheduler = SlurmScheduler()
scheduler.start()
job = scheduler.submit(JobRequest("1.1", ["/bin/true"], Path(sys.argv[1])))
while job.number is None:
    time.sleep(0.01)
    scheduler.poll([job])
while not (Path(sys.argv[1]) / "go").exists():
    time.sleep(0.01)
scheduler.submit(JobRequest("2.1", ["/bin/true"], Path(sys.argv[1])))
time.sleep(1000)
"""


def test_a_launcher_that_is_killed_leaves_no_job_not_even_one_that_is_just_submitted(slurm, tmp_path):
    launcher = subprocess.Popen([sys.executable, "-c", SUBMIT, str(tmp_path)])
    wait(lambda: len(slurm.jobs) == 1)
    slurm.shut("sbatch")
    (tmp_path / "go").touch()
    wait(lambda: len(slurm.calls("sbatch")) == 2)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    slurm.open("sbatch")
    states = ["CANCELLED", "CANCELLED"]
    wait(lambda: [job["state"] for job in slurm.jobs.values()] == states)
