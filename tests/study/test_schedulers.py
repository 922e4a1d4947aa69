"""Whole studies that ``mpiexec`` runs."""

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
