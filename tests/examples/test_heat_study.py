"""The heat study as a user runs it, with few simulations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rapidjson

import melissa
from melissa.launcher.config import load_config
from melissa.launcher.schema import CONFIG_PARSE_MODE

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_configuration_is_valid_and_agrees_with_the_solver(
    heat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import heat

    # The solver's command starts with "python", which a virtual environment has and a bare system may not.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    config, _, _ = load_config(str(heat_folder / "config_heat.json"), None)
    study = config["study_options"]
    assert study["field_names"] == [heat.FIELD_NAME]
    assert study["nb_parameters"] == len(heat.PARAMETER_NAMES)
    assert study["nb_time_steps"] == heat.NB_TIME_STEPS


def test_the_mean_field_counts_each_sample_once() -> None:
    import numpy as np
    from mean_field import MeanField

    class Batch:
        def __init__(self, keys: list[tuple[int, int, int]], values: list[float]) -> None:
            self.simulation_ids, self.draws, self.time_steps = np.array(keys).T
            self.fields = {"temperature": np.array(values, np.float32)[:, None] * np.ones(4, np.float32)}

    mean_field = MeanField(nb_cells=2)
    mean_field.add(Batch([(0, 0, 0), (0, 0, 1), (0, 0, 0)], [100.0, 200.0, 100.0]))
    mean_field.add(Batch([(0, 0, 1), (1, 0, 1), (0, 1, 0)], [200.0, 300.0, 400.0]))
    validation = [(None, torch.full((2, 4), 260.0)), (None, torch.full((2, 4), 240.0))]
    assert mean_field.error(validation) == pytest.approx(10.0)  # about the mean of 100, 200, 300 and 400


@pytest.mark.parametrize(
    "name", ["config_heat.json", pytest.param("config_heat_2ranks.json", marks=pytest.mark.long)]
)
def test_a_small_study_leaves_a_surrogate_pictures_and_a_report_that_adds_up(
    name: str, heat_folder: Path, tmp_path: Path
) -> None:
    with (heat_folder / name).open() as file:
        config = rapidjson.load(file, parse_mode=CONFIG_PARSE_MODE)
    config["output_dir"] = str(tmp_path / "output")
    config["study_options"] |= {"parameter_sweep_size": 4, "validation_simulations": 2}
    config["dl_config"] |= {"buffer_size": 100, "per_server_watermark": 50, "nb_batches_update": 50}
    (tmp_path / "small.json").write_text(json.dumps(config))

    command = [sys.executable, "-m", "melissa.launcher", "--config", str(tmp_path / "small.json")]
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(Path(melissa.__file__).parents[1]),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    done = subprocess.run(
        [*command, "--project_dir", str(heat_folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    output = tmp_path / "output"
    report = json.loads((output / "study_report.json").read_text())
    assert report["simulations"]["finished"] == 4
    assert report["ledger"]["declared"] == 400
    assert report["ledger"]["trained"] + sum(report["ledger"]["dropped"].values()) == 400
    validation = report["validation"]
    assert validation["times_better"] == pytest.approx(
        validation["error_of_mean_field_K"] / validation["error_K"]
    )
    for picture in ("losses.png", "prediction.png"):
        assert (output / picture).read_bytes().startswith(PNG)

    predict = [
        str(heat_folder / "predict.py"),
        str(output / "surrogate.pt"),
        "300",
        "100",
        "500",
        "200",
        "400",
    ]
    done = subprocess.run(
        [sys.executable, *predict, "-o", str(tmp_path / "unseen.png")],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "unseen.png").read_bytes().startswith(PNG)
