"""Whole studies that ``mpiexec`` runs."""

import os
import signal
from pathlib import Path

import pytest

TWO_RANKS_OF_A_SOLVER = """
from mpi4py import MPI

comm = MPI.COMM_WORLD
assert comm.Get_size() == 2
size = 6
melissa_init_typed("temperature", size, "float64", comm)
for time_step in range(5):
    values = field_values("temperature", 2 * size, time_step, PARAMETERS)
    melissa_send_typed("temperature", values[size * comm.Get_rank() :][:size])
melissa_finalize()
"""


@pytest.fixture(autouse=True)
def root_may_run_mpiexec(monkeypatch):
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")


def test_solvers_of_one_rank_and_their_server_run_under_mpiexec(study):
    study.configure({"launcher_config.scheduler": "openmpi"})
    study.succeed()
    study.expect_ledger(4 * 5)


def test_every_rank_of_a_solver_runs_its_script(study):
    study.configure(
        {
            "launcher_config.scheduler": "openmpi",
            "launcher_config.scheduler_arg_client": ["--oversubscribe", "-n", "2"],
        }
    )
    study.solver(TWO_RANKS_OF_A_SOLVER)
    study.succeed()
    study.expect_ledger(4 * 5)


TWO_SERVER_RANKS = {
    "launcher_config.scheduler": "openmpi",
    "launcher_config.scheduler_arg_server": ["--oversubscribe", "-n", "2"],
}


def test_a_server_of_two_ranks_shares_the_time_steps(study):
    study.configure(TWO_SERVER_RANKS)
    study.succeed()
    study.expect_ledger(4 * 5)
    assert [rank["ledger"]["trained"] for rank in study.report["ranks"]] == [10, 10]


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_server_that_loses_a_rank_is_started_again(study, rank):
    study.configure(TWO_SERVER_RANKS)
    study.solver(
        """
        if os.environ["MELISSA_STUDY_EPOCH"] == "1":
            declare()
            send(0, 1)
            mark("here")
            time.sleep(1000)
        solve(5)
        """
    )
    launcher = study.start()
    study.wait_for_mark("here")
    os.kill(rank_process(study, rank), signal.SIGKILL)
    result = study.wait(launcher)
    assert result.returncode == 0, study.logs()
    assert result.stderr.count("the server is started again: restart 1") == 1
    study.expect_ledger(4 * 5)


def rank_process(study, rank):
    """Return the process of a server rank."""
    wanted = f"OMPI_COMM_WORLD_RANK={rank}".encode()
    for pid in study.processes():
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if wanted in variables and b"melissa.server" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError(f"no process is server rank {rank}")
