"""Studies whose server runs under MPICH, in an environment of its own that MELISSA_MPICH_ENVIRONMENT names.

It is made by ``python -m venv DIR && DIR/bin/pip install mpich`` with the Python that runs the tests; other
packages are taken from the environment of the tests.
"""

import os
import signal
import sys
from pathlib import Path

import pytest
from studies import NB_SIMULATIONS

FOLDER = os.environ.get("MELISSA_MPICH_ENVIRONMENT", "")
NB_TIME_STEPS = 60

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not FOLDER, reason="MELISSA_MPICH_ENVIRONMENT names no environment with MPICH"),
    pytest.mark.timeout(300),
]

SOLVER = f"""
declare()
for time_step in range({NB_TIME_STEPS}):
    send(time_step)
    time.sleep(0.05)
melissa_finalize()
"""

SERVER = """
import os

from mpi4py import MPI

from melissa.server.deep_learning.base_dl_server import rank_zero_only

class Server(LearningServer):
    def on_train_start(self):
        with open(f"start.{self.rank}", "a") as file:
            print(os.environ["MELISSA_STUDY_EPOCH"], os.getpid(), MPI.Get_library_version(), file=file)

    @rank_zero_only
    def on_train_end(self):
        super().on_train_end()
"""


@pytest.fixture
def study(study, monkeypatch):
    # Its libraries are found by the interpreter's prefix, its mpiexec by PATH, all else by PYTHONPATH.
    packages = [path for path in sys.path if path.endswith("site-packages")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(packages))
    monkeypatch.setenv("PATH", f"{FOLDER}/bin{os.pathsep}{os.environ['PATH']}")
    study.python = f"{FOLDER}/bin/python"
    study.patience = 120.0
    study.solver(SOLVER)
    study.server(SERVER, base="learning")
    study.configure(
        {
            "study_options.nb_time_steps": NB_TIME_STEPS,
            "dl_config.batch_size": 2,
            "dl_config.buffer_size": 60,
            "dl_config.checkpoint_interval": 3,
            "launcher_config.scheduler": "openmpi",
            "launcher_config.scheduler_arg_server": ["-n", "2"],
            "launcher_config.scheduler_arg_client": ["-n", "1"],
        }
    )
    return study


def starts(study, rank):
    """Return (epoch, process) of each start of a rank; all were made by MPICH."""
    lines = [line for line in study.read(f"start.{rank}").splitlines() if line[:1].isdecimal()]
    assert all("MPICH" in line for line in lines)
    return [tuple(map(int, line.split()[:2])) for line in lines]


def test_two_ranks_train_one_model(study):
    study.succeed()
    study.expect_ledger(NB_SIMULATIONS * NB_TIME_STEPS)
    assert [rank["ledger"]["trained"] for rank in study.report["ranks"]] == [120, 120]
    assert "2 server ranks train together" in study.server_log
    assert [[epoch for epoch, _ in starts(study, rank)] for rank in range(2)] == [[1], [1]]


@pytest.mark.parametrize("dying", [0, 1])
def test_when_a_rank_is_killed_both_go_on_from_a_checkpoint(study, dying):
    launcher = study.start()
    checkpoints = Path(study.output, "checkpoints", "melissa")
    study.wait_until(lambda: len(list(checkpoints.glob("[0-9]*/rank?"))) >= 4, "two checkpoints")
    ((_, process),) = starts(study, dying)
    os.kill(process, signal.SIGKILL)
    result = study.wait(launcher)
    assert result.returncode == 0, study.logs()
    assert "the server is started again: restart 1" in result.stderr
    assert [[epoch for epoch, _ in starts(study, rank)] for rank in range(2)] == [[1, 2]] * 2
    ledger = study.balance()
    assert ledger["declared"] == NB_SIMULATIONS * NB_TIME_STEPS
    assert ledger["trained"] + ledger["dropped"]["untrained"] == ledger["declared"]
