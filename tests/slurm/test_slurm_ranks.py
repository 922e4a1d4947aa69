"""Server ranks that srun starts train data-parallel."""

import json
import subprocess
import sys
from pathlib import Path

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
