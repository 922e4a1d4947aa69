"""Training with live producers: how long it waits for data, and what Melissa itself costs per batch.

Each study is a real one: `melissa-launcher` runs a server and solvers as processes, and what counts stands
in the study's report.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import melissa

PIECES = Path(__file__).with_name("live_study")
BATCH = 10
MOST_OWN_US = {1: 100.0, 2: 300.0}
"""Microseconds that Melissa itself may cost per batch, by the number of server ranks."""


def run_study(
    folder: Path,
    server_class: str,
    *,
    size: int,
    steps: int,
    per_second: float,
    nb_ranks: int = 1,
    **changes: Any,
) -> dict[str, Any]:
    """Run a study to its end; return its report. `changes` are keys of "study_options" and "dl_config"."""
    study = {
        "field_names": ["u"],
        "parameter_sweep_size": 8,
        "nb_parameters": 1,
        "nb_time_steps": steps,
        "bench_size": size,
    }
    learning = {
        "batch_size": BATCH,
        "buffer": "Reservoir",
        "nb_batches_update": 100,
        "checkpoint_interval": 10**6,
    }
    for key, value in changes.items():
        (study if key in study else learning)[key] = value
    launcher = {"job_limit": 3, "timer_delay": 0.2}
    if nb_ranks > 1:
        ranks = ["-n", str(nb_ranks), "--oversubscribe"]
        launcher |= {"scheduler": "openmpi", "scheduler_arg_server": ranks}
    config = {
        "server_filename": "server.py",
        "server_class": server_class,
        "output_dir": str(folder / "output"),
        "study_options": study,
        "dl_config": learning,
        "launcher_config": launcher,
        "client_config": {
            "executable_command": shlex.join(
                [sys.executable, str(PIECES / "solver.py"), str(size), str(steps), str(per_second)]
            )
        },
    }
    path = folder / "study.json"
    path.write_text(json.dumps(config))
    packages = [str(Path(melissa.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, packages))}
    if os.geteuid() == 0:
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "melissa.launcher", "--config_name", str(path), "--project_dir", str(PIECES)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return json.loads((folder / "output" / "study_report.json").read_text())


def training_seconds(report: dict[str, Any]) -> float:
    """Seconds from the watermark to the end of training."""
    return report["samples_delivered"] / report["samples_per_second"]


def report_own_cost(report, what: str, figures: list[float], nb_ranks: int = 1) -> None:
    """Report a cost per batch in microseconds: the lowest, the median and the highest of a study's parts."""
    lowest, median, highest = figures
    most = MOST_OWN_US[nb_ranks]
    spread = f"{lowest / most:.2f}..{highest / most:.2f}"
    report(what, median, most, unit="us", bar="<= 1.00", spread=spread)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("pace", "per_second", "steps"), [("100 steps/s", 100, 500), ("flat out", 0, 2500)])
def test_trainer_waits_for_data(tmp_path, report, pace, per_second, steps):
    study = run_study(
        tmp_path,
        "LearningServer",
        size=10_000,
        steps=steps,
        per_second=per_second,
        buffer_size=1000,
        per_server_watermark=300,
    )
    assert study["ledger"]["trained"] == 8 * steps
    timed = study["validation"]
    solvers = f"2 solvers of 40 kB, {pace}"
    seconds, waited = training_seconds(study), study["waits"]["trainer_for_data_s"]
    report(f"wait for data after the watermark, {solvers}", waited, seconds, unit="s", bar="<= 0.02")
    report(f"time in training steps, {solvers}", timed["steps_s"], seconds, unit="s", bar="")
    report_own_cost(report, f"own processor time per batch of 10, {solvers}", timed["own_cpu_us"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("nb_ranks", MOST_OWN_US)
@pytest.mark.parametrize(
    ("what", "server_class"),
    [("step that does nothing", "IdleServer"), ("step that logs a scalar", "LoggingServer")],
)
def test_own_cost_per_batch(tmp_path, report, what, server_class, nb_ranks):
    # All samples come first; then they are delivered so often, with nobody beside the trainer.
    study = run_study(
        tmp_path,
        server_class,
        size=16,
        steps=250,
        per_second=0,
        buffer="FIRO",
        buffer_size=2000,
        pseudo_epochs=100,
        nb_ranks=nb_ranks,
    )
    # Every sample is delivered 100 times, on the rank that has it.
    assert study["ledger"]["trained"] == 8 * 250
    assert [rank["batches"] for rank in study["ranks"]] == [20_000 // nb_ranks] * nb_ranks
    ranks = "1 rank" if nb_ranks == 1 else f"{nb_ranks} ranks"
    figures = study["validation"]["own_us"]
    report_own_cost(report, f"own time per batch of 10 x 64 B, {what}, {ranks}", figures, nb_ranks)
