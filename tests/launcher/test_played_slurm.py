"""Studies of the launcher with a Slurm that does what the test says; real ones are in tests/slurm."""

import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scheduler"))

from fake_slurm import FakeSlurm

SOON = 60.0


@pytest.fixture
def slurm(tmp_path):
    slurm = FakeSlurm(tmp_path / "slurm", runs=True)
    yield slurm
    slurm.end()


def start(study, slurm, character):
    study.start(
        character, scheduler="slurm", timer_delay=0.2, server_timeout=20.0, environment={"PATH": slurm.path}
    )


def wait_for_end(study):
    """Wait for the end of the launcher, and a little for that of its jobs' shells; return its stderr."""
    _, stderr = study.launcher.communicate(timeout=SOON)
    study.wait_for_no_process()
    return stderr


def wait_until(condition):
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_launcher_gives_signs_of_life_while_sbatch_does_not_answer(study, slurm):
    start(study, slurm, f"count_pings_while_a_client_is_submitted {slurm.folder}")
    stderr = wait_for_end(study)
    assert study.launcher.returncode == 0, stderr
    assert [update["job_state"] for update in study.updates][-1] == "TERMINATED"


def test_a_client_that_slurm_takes_later_is_run_and_the_server_hears_of_no_failure(study, slurm):
    slurm.plan("take", "refuse sbatch: error: QOSMaxSubmitJobPerUserLimit")
    start(study, slurm, "finish 1")
    stderr = wait_for_end(study)
    assert study.launcher.returncode == 0, stderr
    assert "Slurm takes no further job, for 0 s now: sbatch: sbatch: error: QOSMaxSubmitJob" in stderr
    assert {update["job_state"] for update in study.updates} <= {"RUNNING", "TERMINATED"}
    assert len(slurm.calls("sbatch")) == 3


def test_a_client_that_slurm_never_takes_could_not_be_started(study, slurm):
    slurm.plan("take", "refuse sbatch: error: invalid partition specified: gpus")
    start(study, slurm, "finish 1")
    stderr = wait_for_end(study)
    assert study.launcher.returncode == 0, stderr
    (update,) = study.updates
    assert update["job_state"] == "ERROR"
    assert "invalid partition specified: gpus" in update["error"]
    assert "simulation 0, attempt 1: could not be started" in stderr


def test_a_server_that_slurm_does_not_take_ends_the_study_with_what_it_said(study, slurm):
    slurm.plan("refuse sbatch: error: invalid partition specified: gpus")
    start(study, slurm, "finish 1")
    stderr = wait_for_end(study)
    assert study.launcher.returncode == 1
    assert "error: the server could not be started" in stderr
    assert "invalid partition specified: gpus" in stderr


def test_a_signal_ends_a_study_whose_server_is_just_submitted(study, slurm):
    slurm.shut("sbatch")
    start(study, slurm, "live")
    wait_until(lambda: slurm.calls("sbatch"))
    study.launcher.send_signal(signal.SIGTERM)
    study.wait_for_log("SIGTERM came", timeout=SOON)
    slurm.open("sbatch")
    wait_for_end(study)
    assert study.launcher.returncode == 143
    assert [job["state"] for job in slurm.jobs.values()] == ["CANCELLED"]
