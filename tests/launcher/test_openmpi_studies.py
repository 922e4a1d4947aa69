"""Studies whose server and clients are run by ``mpiexec``."""

import pytest

OPENMPI = {"scheduler": "openmpi", "scheduler_arg": ["--oversubscribe"]}
DEEP = "setsid sleep 1000 & sleep 1000"


@pytest.fixture(autouse=True)
def root_may_run_mpiexec(monkeypatch):
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")


def test_a_server_of_two_ranks_gives_clients_of_three_all_its_addresses(study):
    study.solver('echo "$MELISSA_SERVER_NODE_NAME $MELISSA_SERVER_ADDRESS $OMPI_COMM_WORLD_RANK"')
    ranks = {"scheduler_arg_server": ["-n", "2"], "scheduler_arg_client": ["-n", "3"]}
    result = study.run("finish_on_two_ranks", **ranks, **OPENMPI)
    assert result.returncode == 0, result.stderr
    told = sorted((study.output / "stdout/simulation0.out").read_text().splitlines())
    assert told == [f"127.0.0.1 127.0.0.1:4711,127.0.0.1:4712 {rank}" for rank in range(3)]
    assert "rank 1 was here" in (study.output / "stdout/server.out").read_text()


def test_a_server_that_registers_another_number_of_ranks_ends_the_study(study):
    result = study.run("register_another_number_of_ranks", scheduler="openmpi")
    assert result.returncode == 1
    assert (
        "registered with 2 ranks and 2 addresses for clients, but was started with 1 ranks" in result.stderr
    )


def test_no_rank_outlives_a_launcher_that_is_killed(study):
    study.solver("trap '' TERM; " + DEEP)
    study.start("live_and_mind_nothing", scheduler_arg_client=["-n", "2"], **OPENMPI)
    study.wait_for_log("attempt 1: running")
    study.wait_for_processes(11)  # launcher, supervisor, mpiexec and server, mpiexec, and twice three
    study.launcher.kill()
    study.wait_for_no_process()


def test_every_rank_of_a_dead_server_has_ended_before_the_next_one_starts(study):
    two = {"scheduler_arg_server": ["-n", "2"], "fault_tolerance": True}
    result = study.run("die_on_two_ranks", **two, **OPENMPI)
    assert result.returncode == 0, result.stderr
    assert "the server is started again: restart 1" in result.stderr
    assert (study.output / "rank1.1").exists()
    assert not (study.output / "overlap").exists()
