"""Server ranks that srun starts train data-parallel."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ranks"))

from under_mpi import HELPERS, environment


def test_ranks_that_srun_starts_meet_by_slurms_environment(tmp_path):
    done = subprocess.run(
        ["srun", "--mpi=pmix", "-n", "2", sys.executable, str(HELPERS / "torch_studies.py"), "even_slurm"],
        env=environment(2),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads((tmp_path / f"told.{rank}").read_text())["even_slurm"] for rank in range(2)]
    assert [result["nb_samples"] for result in told] == [20, 20]
    assert told[0]["weights"] == told[1]["weights"]
    assert {result["in_hooks"] for result in told} == {"DistributedDataParallel"}
    assert told[0]["master"] == told[1]["master"]
    assert told[0]["master"][0] == told[0]["node"]
    assert [result["idr_torch"] for result in told] == [[0, 0, 2], [1, 1, 2]]


# Whole studies.

TWO_RANKS = {"launcher_config.scheduler_arg_server": ["--ntasks=2"], "dl_config.batch_size": 2}
NB_LONG_STEPS = 60

SLOW_SOLVER = f"""
declare()
for time_step in range({NB_LONG_STEPS}):
    send(time_step)
    time.sleep(0.05)
melissa_finalize()
"""

NOTING = """
from melissa.server.deep_learning.base_dl_server import rank_zero_only

class Server(LearningServer):
    def on_batch_start(self, batch_idx):
        with open(f"batches{self.rank}.txt", "a") as file:
            print(os.environ["MELISSA_STUDY_EPOCH"], batch_idx, file=file)

    @rank_zero_only
    def on_train_end(self):
        super().on_train_end()
"""


def server_rank(study, rank):
    """The process of a server rank under srun."""
    wanted = f"SLURM_PROCID={rank}".encode()
    for pid in study.processes():
        folder = Path(f"/proc/{pid}")
        is_server = b"melissa.server" in (folder / "cmdline").read_bytes().split(b"\0")
        if is_server and wanted in (folder / "environ").read_bytes().split(b"\0"):
            return pid
    raise AssertionError(f"there is no server rank {rank}")


def batches(study, epoch, rank):
    lines = [line.split() for line in study.read(f"batches{rank}.txt").splitlines()]
    return [int(batch) for start, batch in lines if int(start) == epoch]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_when_a_rank_that_srun_started_is_killed_both_go_on_from_a_checkpoint(study):
    study.patience = 240.0
    study.solver(SLOW_SOLVER)
    study.server(f"import os\n{NOTING}", base="learning")
    study.configure(
        TWO_RANKS
        | {
            "study_options.nb_time_steps": NB_LONG_STEPS,
            "dl_config.buffer_size": 60,
            "dl_config.checkpoint_interval": 3,
        }
    )
    launcher = study.start()
    checkpoints = study.output / "checkpoints" / "melissa"
    study.wait_until(lambda: len(list(checkpoints.glob("[0-9]*/rank?"))) >= 4, "two checkpoints")
    os.kill(server_rank(study, 1), signal.SIGKILL)
    result = study.wait(launcher)
    assert result.returncode == 0, study.logs()
    assert "the server is started again: restart 1" in result.stderr
    ledger = study.balance()
    assert ledger["declared"] == 4 * NB_LONG_STEPS
    assert ledger["trained"] + ledger["dropped"]["untrained"] == ledger["declared"]
    first, second = batches(study, 2, 0), batches(study, 2, 1)
    assert first == second == list(range(first[0], first[-1] + 1))
    assert 3 < first[0] <= max(batches(study, 1, 0)) + 1


@pytest.mark.long
@pytest.mark.timeout(300)
def test_two_ranks_that_srun_starts_train_one_model_with_tensorflow(study):
    pytest.importorskip("h5py", reason="TensorFlow is not installed")
    study.patience = 240.0
    study.server("class Server(LearningServer): pass", base="learning_tf")
    study.configure(TWO_RANKS | {"dl_config.setup_slurm_ddp": True})
    study.succeed()
    study.expect_ledger(20)
    seen = [json.loads(study.read(f"seen.{rank}.json")) for rank in range(2)]
    assert seen[0]["weights"] == seen[1]["weights"]
    assert [each["counts"] for each in seen] == [[1] * 10] * 2
