"""A server that dies is started again, after all that it left has ended; unless that is of no use."""

import signal

import pytest

from melissa.launcher.restarts import Restarts
from melissa.scheduler.job import Job, JobRequest, State

TOLERANT = {"fault_tolerance": True}


def starts(study):
    return study.log.count("the server is started again: restart")


def test_a_server_that_is_killed_is_started_again(study):
    study.solver("sleep 1000 & setsid sleep 1000")
    study.start("die 5", **TOLERANT)
    study.wait_for_log("restart 1")
    study.solver("exit 0")
    result = study.wait()
    assert result.returncode == 0, result.stderr
    assert "the server was killed by signal 9" in result.stderr
    assert "last words of start 0" in result.stderr
    assert "the server is started again: restart 1" in result.stderr
    assert study.state["epoch"] == 2
    assert study.state["state"] == "finished"
    assert "server restarts" in result.stdout


def test_everything_of_the_dead_server_has_ended_before_the_next_one_starts(study):
    """Each solver takes its time to end; a server that saw one of an earlier start alive would fail."""
    study.solver("trap 'sleep 0.3; exit' TERM; sleep 1000 & wait")
    script = ['! pgrep -f "$MELISSA_OUTPUT_DIR/client_scripts/" >/dev/null || touch overlap']
    server = study.config("die 5 6")["server_config"]["preprocessing_commands"]
    study.start("", server={"preprocessing_commands": script + server}, **TOLERANT)
    study.wait_for_log("restart 2")
    study.solver("exit 0")
    assert study.wait().returncode == 0
    assert not (study.output / "overlap").exists()


@pytest.mark.parametrize("life", ["silent", "rank", "terminated"])
def test_a_server_that_hangs_has_lost_a_rank_or_was_terminated_is_started_again(study, life):
    study.solver("sleep 1000")
    study.start(f"die {life}", server_timeout=1.0, **TOLERANT)
    study.wait_for_log("restart 1")
    study.solver("exit 0")
    assert study.wait().returncode == 0


def test_a_server_that_dies_without_progress_is_given_up_with_its_last_words(study):
    result = study.run("die 5 5 5 5 5", **TOLERANT)
    assert result.returncode == 1
    assert "died 3 times without a batch more than before" in result.stderr
    # The first life trained five batches, which is progress.
    assert starts(study) == 3
    assert "last words of start 3" in result.stderr.partition("error:")[2]


def test_a_server_that_makes_progress_may_die_often(study):
    result = study.run("die 1 2 3 4 5", **TOLERANT)
    assert result.returncode == 0, result.stderr
    assert starts(study) == 5


def test_a_server_that_never_came_up_is_not_tried_again(study):
    result = study.run("die exit", **TOLERANT)
    assert result.returncode == 1
    assert "the server ended with status 7" in result.stderr
    assert starts(study) == 0


def test_a_server_that_is_killed_while_it_starts_is_started_again(study):
    assert study.run("die early", **TOLERANT).returncode == 0
    assert starts(study) == 1


def test_a_server_that_fails_by_its_own_word_is_not_started_again(study):
    study.solver("sleep 1000")
    result = study.run("tell_of_a_failure", **TOLERANT)
    assert result.returncode == 1
    assert "error: the server failed with ValueError" in result.stderr
    assert starts(study) == 0


def test_without_fault_tolerance_a_dead_server_ends_the_study(study):
    assert study.run("die 5").returncode == 1
    assert starts(study) == 0


def test_a_signal_while_a_dead_servers_jobs_end_ends_the_study(study):
    study.solver("trap '' TERM; while true; do sleep 0.05; done")
    study.start("die 5", **TOLERANT)
    study.wait_for_log("all jobs are ended, then the server is started again")
    study.launcher.send_signal(signal.SIGTERM)
    assert study.wait().returncode == 143
    assert starts(study) == 0


def test_a_study_whose_launcher_and_server_died_goes_on(study):
    study.solver("sleep 1000")
    study.start("die 5", **TOLERANT)
    study.wait_for_log("restart 1")
    study.launcher.kill()
    study.wait_for_no_process()
    study.solver("exit 0")
    result = study.run("die 5", **TOLERANT)
    assert result.returncode == 0
    assert "start 3 of the study" in result.stdout
    assert study.state["epoch"] == 3


def ended(exit_code):
    return Job(JobRequest("server", [], None), exit_code=exit_code)


def test_only_deaths_in_a_row_without_progress_count():
    restarts = Restarts(is_allowed=True)
    restarts.registered()
    for batches in (1, 1, 1, 2, 2, 2):
        restarts.progress({"batches": batches})
        assert restarts.refusal(ended(-9)) is None
    assert "3 times" in restarts.refusal(ended(-9))


def test_trained_samples_are_progress_too():
    restarts = Restarts(is_allowed=True)
    for trained in range(1, 6):
        restarts.progress({"batches": 0, "samples_trained": trained})
        assert restarts.refusal(ended(137)) is None


def test_a_server_that_the_scheduler_refuses_is_not_tried_again():
    restarts = Restarts(is_allowed=True)
    restarts.registered()
    refused = Job(JobRequest("server", [], None), State.ERROR)
    assert restarts.refusal(refused) == "the scheduler does not take it"
