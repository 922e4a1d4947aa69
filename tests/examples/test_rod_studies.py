"""The rod studies as a user runs them, from a copy that the launcher writes, with fewer simulations."""

import filecmp
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rapidjson
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import melissa
from melissa.launcher.schema import CONFIG_PARSE_MODE

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = os.environ | {
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "PYTHONPATH": str(Path(melissa.__file__).parents[1]),
}


def launch(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "melissa.launcher", *arguments],
        env=ENVIRONMENT,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "module", "network"),
    [("heat-jax", "jax", "network.npz"), ("heat-tensorflow", "tensorflow", "surrogate.keras")],
)
def test_a_copied_example_trains_a_surrogate(tmp_path: Path, name: str, module: str, network: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    said = launch("--example", name, "rods", folder=tmp_path)
    assert "melissa-launcher --config_name config_rod.json" in said
    path = tmp_path / "rods" / "config_rod.json"
    config = rapidjson.loads(path.read_text(), parse_mode=CONFIG_PARSE_MODE)
    config["study_options"]["parameter_sweep_size"] = 10
    # In the place of a Reservoir, whose number of batches follows from the speed of this machine.
    config["dl_config"] |= {"buffer": "FIRO", "pseudo_epochs": 20, "nb_batches_update": 200}
    config["output_dir"] = "output"
    path.write_text(json.dumps(config))
    launch("--config_name", path.name, folder=path.parent)

    output = path.parent / "output"
    report = json.loads((output / "study_report.json").read_text())
    assert report["ledger"]["trained"] == report["ledger"]["declared"] == 500
    # The mean of all fields is some 70 K away.
    assert report["validation"]["error_K"] < 40.0
    assert (output / network).is_file()
    events = EventAccumulator(str(output / "tensorboard" / "gpu_0"))
    events.Reload()
    assert {"Loss/train", "Loss/valid"} <= set(events.Tags()["scalars"])


def test_both_examples_have_the_same_solver_and_configuration() -> None:
    for name in ("rod.py", "config_rod.json"):
        assert filecmp.cmp(EXAMPLES / "heat-jax" / name, EXAMPLES / "heat-tensorflow" / name, shallow=False)
