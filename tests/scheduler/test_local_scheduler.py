"""The local scheduler: states of jobs, their output, and that no process outlives what it belongs to."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from logging.handlers import BufferingHandler

import pytest

from melissa.exceptions import UnsupportedConfiguration
from melissa.scheduler import local
from melissa.scheduler.factory import make_scheduler
from melissa.scheduler.job import State
from melissa.scheduler.scheduler import SchedulerError
from melissa.utility.process import last_lines


def test_a_job_runs_and_terminates(jobs):
    job = jobs.submit("exit 0")
    assert job.state is State.WAITING
    jobs.wait_for_end(job)
    assert (job.state, job.exit_code) == (State.TERMINATED, 0)


def test_a_job_that_fails_tells_its_status_and_the_end_of_its_stderr(jobs):
    job = jobs.wait_for_end(jobs.submit("seq 1 10000 >&2; exit 3"))
    assert (job.state, job.exit_code) == (State.FAILED, 3)
    assert last_lines(job.error, 2) == "9999\n10000"


def test_a_job_that_is_killed_tells_the_signal(jobs):
    job = jobs.wait_for_end(jobs.submit("kill -SEGV $$"))
    assert (job.state, job.exit_code) == (State.FAILED, -signal.SIGSEGV)


def test_the_request_names_environment_folder_and_files(jobs, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    request = {"stdout": tmp_path / "out", "stderr": tmp_path / "err", "directory": folder}
    environment = {"OURS": "söme thing"}
    jobs.wait_for_end(jobs.submit('echo "$OURS"; pwd; echo oh >&2', environment=environment, **request))
    assert (tmp_path / "out").read_text() == f"söme thing\n{folder}\n"
    assert (tmp_path / "err").read_text() == "oh\n"


def test_output_is_appended_and_the_error_is_of_this_attempt_only(jobs, tmp_path):
    request = {"stdout": tmp_path / "out", "stderr": tmp_path / "err"}
    for attempt in ("first", "second"):
        job = jobs.wait_for_end(jobs.submit(f"echo {attempt}; echo {attempt} >&2; exit 1", **request))
    assert (tmp_path / "out").read_text() == (tmp_path / "err").read_text() == "first\nsecond\n"
    assert job.error == "second\n"


def test_jobs_have_process_groups_of_their_own_and_default_signals(jobs, tmp_path):
    code = (
        "import os, signal; print(os.getpgid(0) == os.getpid(), os.getsid(0), "
        "[signal.getsignal(s) is signal.SIG_DFL for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)],"
        "signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    jobs.wait_for_end(jobs.submit([sys.executable, "-c", code], stdout=tmp_path / "out"))
    expected = f"True {jobs.supervisor} [True, True, True] True\n"
    assert (tmp_path / "out").read_text() == expected
    assert os.getsid(jobs.supervisor) != os.getsid(0)


def test_jobs_inherit_no_descriptors(jobs, tmp_path):
    jobs.wait_for_end(jobs.submit(["/bin/ls", "/proc/self/fd"], stdout=tmp_path / "out"))
    assert (tmp_path / "out").read_text().split() == ["0", "1", "2", "3"]  # the last one is ls's own


@pytest.mark.parametrize(
    ("command", "changes", "error"),
    [
        (["no-such-solver"], {}, "cannot start no-such-solver: No such file or directory"),
        (["/etc/passwd"], {}, "cannot start /etc/passwd: Permission denied"),
        (["/bin/true"], {"directory": "/no/where"}, "cannot start /bin/true in /no/where: No such file"),
        (["/bin/true"], {"stdout": "/no/where/out"}, "cannot start /bin/true: /no/where/out: No such file"),
        (["/bin/true"], {"stderr": "/no/where/err"}, "cannot start /bin/true: /no/where/err: No such file"),
        (["/bin/true", "null\0"], {}, "cannot start /bin/true: embedded null byte"),
    ],
)
def test_a_job_that_cannot_be_started_says_why(jobs, command, changes, error):
    job = jobs.wait_for_end(jobs.submit(command, **changes))
    assert (job.state, job.exit_code) == (State.ERROR, None)
    assert error in job.error
    assert jobs.wait_for_end(jobs.submit("exit 0")).state is State.TERMINATED


def test_a_missing_interpreter_is_told_apart_from_a_missing_program(jobs, tmp_path):
    script = tmp_path / "solver"
    script.write_text("#!/no/such/python\n")
    script.chmod(0o755)
    assert "first line" in jobs.wait_for_end(jobs.submit([str(script)])).error


def test_poll_returns_the_jobs_that_changed_among_those_asked_for(jobs):
    one, other = jobs.submit("exit 0"), jobs.submit("exit 0")
    deadline = time.monotonic() + 60
    seen = []
    while one.is_alive or other.is_alive:
        assert time.monotonic() < deadline
        seen += jobs.scheduler.poll([one])
    assert set(seen) == {one}


def test_ends_are_told_at_once(jobs):
    job = jobs.submit("exit 0")
    start = time.monotonic()
    jobs.wait_for_end(job)
    assert time.monotonic() - start < 20.0


def test_a_cancelled_job_ends_and_others_go_on(jobs, processes):
    job, other = jobs.submit("exec sleep 1000"), jobs.submit("exec sleep 1000")
    processes.wait_for(2)
    jobs.scheduler.cancel([job], 300.0)
    jobs.wait_for_end(job)
    assert (job.state, job.exit_code) == (State.FAILED, -signal.SIGTERM)
    assert other.is_alive
    assert len(processes.alive()) == 1


def test_a_cancelled_job_that_ignores_sigterm_is_killed(jobs, processes, tmp_path):
    job = jobs.submit("trap '' TERM; touch deaf; while true; do sleep 0.05; done")
    jobs.wait((tmp_path / "deaf").exists)
    jobs.scheduler.cancel([job], 0.3)
    jobs.wait_for_end(job)
    assert job.exit_code == -signal.SIGKILL
    processes.wait_for(0)


def test_a_cancelled_job_that_is_stopped_ends_too(jobs, processes):
    job = jobs.submit("kill -STOP $$; sleep 1000")
    jobs.wait(lambda: job.state is State.RUNNING)
    jobs.scheduler.cancel([job], 300.0)
    jobs.wait_for_end(job)


DEEP = "setsid sh -c 'sleep 1000 & sleep 1000' & (setsid sleep 1000 &) ; sleep 1000 & "


def test_a_cancelled_job_takes_all_descendants_along_in_whatever_session(jobs, processes):
    job = jobs.submit(DEEP + "sleep 1000")
    processes.wait_for(7)
    jobs.scheduler.cancel([job], 0.5)
    jobs.wait_for_end(job)
    processes.wait_for(0)


def test_what_an_ended_job_leaves_running_is_ended(jobs, processes):
    other = jobs.submit("sleep 1000; exit 0")
    job = jobs.wait_for_end(jobs.submit(DEEP + "exit 0"))
    assert job.state is State.TERMINATED
    processes.wait_for(2)
    assert other.is_alive


def test_what_an_ended_job_left_is_told_until_it_is_gone(jobs, processes):
    job = jobs.wait_for_end(jobs.submit("trap '' TERM; " + DEEP + "exit 0"))
    assert jobs.scheduler.has_remains
    assert processes.alive()
    jobs.wait(lambda: not jobs.scheduler.has_remains)
    assert processes.alive() == []
    assert job.state is State.TERMINATED


def test_close_ends_everything(jobs, processes):
    for _ in range(3):
        jobs.submit("trap '' TERM; " + DEEP + "sleep 1000")
    processes.wait_for(3 * 7)
    jobs.scheduler.close(0.2)
    assert processes.alive() == []


def test_a_dead_supervisor_is_told_and_leaves_nothing(jobs, processes):
    job = jobs.submit(DEEP + "sleep 1000")
    processes.wait_for(7)
    jobs.wait(lambda: job.state is State.RUNNING)
    os.kill(jobs.supervisor, signal.SIGKILL)
    with pytest.raises(SchedulerError, match=r"supervisor of local jobs .* killed by signal 9"):
        jobs.wait_for_end(job)
    assert processes.alive() == []
    assert not job.is_alive
    with pytest.raises(SchedulerError, match="not running"):
        jobs.submit("exit 0")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_supervisor_that_fails_while_it_ends_everything_leaves_nothing(
    jobs, processes, monkeypatch, number
):
    monkeypatch.setattr(local, "_CLOSE_TIMEOUT", 0.5)
    jobs.submit("trap '' TERM; " + DEEP + "sleep 1000")
    processes.wait_for(7)
    failing = threading.Timer(0.2, os.kill, [jobs.supervisor, number])
    failing.start()
    jobs.scheduler.close(0.6)
    assert processes.alive() == []


def test_the_supervisor_ends_everything_when_it_is_asked_to_end(jobs, processes):
    jobs.submit(DEEP + "sleep 1000")
    processes.wait_for(7)
    os.kill(jobs.supervisor, signal.SIGTERM)
    processes.wait_for(0)


def test_the_supervisor_does_not_mind_ctrl_c(jobs):
    job = jobs.submit("sleep 0.5; exit 5")
    jobs.wait(lambda: job.state is State.RUNNING)
    os.kill(jobs.supervisor, signal.SIGINT)
    os.kill(jobs.supervisor, signal.SIGHUP)
    assert jobs.wait_for_end(job).exit_code == 5


SUBMIT_AND_WAIT = """
import os, sys, time
from pathlib import Path
from melissa.scheduler.job import JobRequest
from melissa.scheduler.local import LocalScheduler
scheduler = LocalScheduler()
scheduler.start()
scheduler.submit(JobRequest("job", ["/bin/sh", "-c", sys.argv[1]], Path("/")))
time.sleep(1000)
"""


def test_no_process_outlives_a_launcher_that_is_killed(processes):
    stubborn = "trap '' TERM; " + DEEP + "sleep 1000"
    launcher = subprocess.Popen(
        [sys.executable, "-c", SUBMIT_AND_WAIT, stubborn], env=os.environ | processes.environment
    )
    processes.wait_for(7 + 2)  # the launcher and its supervisor have the mark, too
    launcher.kill()
    launcher.wait()
    processes.wait_for(0)


def test_hundreds_of_jobs_pass_through(jobs):
    submitted = [jobs.submit(["/bin/true"]) for _ in range(300)]
    jobs.wait(lambda: all(job.state is State.TERMINATED for job in submitted))


def test_only_schedulers_that_there_are_can_be_chosen():
    with pytest.raises(UnsupportedConfiguration, match='no scheduler "oar"'):
        make_scheduler({"scheduler": "oar"})
    make_scheduler({"scheduler": "local", "scheduler_arg": [], "scheduler_arg_client": []})


def test_arguments_for_the_local_scheduler_are_ignored_with_one_warning(monkeypatch):
    log = BufferingHandler(capacity=100)
    monkeypatch.setattr(logging.getLogger("melissa"), "handlers", [log])
    make_scheduler({"scheduler": "local", "scheduler_arg": ["-n"], "scheduler_arg_client": ["-x"]})
    (record,) = log.buffer
    assert record.levelname == "WARNING"
    assert "scheduler_arg, scheduler_arg_client: ignored" in record.getMessage()
