"""Run the heat study with several seeds: does it learn with each, how fast, and do its sums hold?

    python benches/heat_seeds.py OUTPUT [--seeds 0 1 2 3 4] [--simulations 100]

Each study is run by `melissa-launcher` into OUTPUT/seed-<n>. The table says by how much the surrogate beats
the mean field on the validation set, and how long training waited for data. Exit status 1 when a study
failed, beat it less than ten times, took more than five minutes, or lost a time step.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import rapidjson

from melissa.launcher.schema import CONFIG_PARSE_MODE

EXAMPLE = Path(__file__).parents[1] / "examples" / "heat-pde"
LEAST_RATIO = 10.0
MOST_SECONDS = 300.0

COLUMNS = (
    "seed",
    "error K",
    "mean field K",
    "ratio",
    "batches",
    "samples/s",
    "waited s",
    "seconds",
    "verdict",
)


def run_study(output: Path, seed: int, nb_simulations: int) -> tuple[dict[str, Any], float]:
    """Run one study; return its report, and how long the launcher took in seconds."""
    output.mkdir(parents=True)
    with (EXAMPLE / "config_heat.json").open() as file:
        config = rapidjson.load(file, parse_mode=CONFIG_PARSE_MODE)
    config["output_dir"] = str(output.absolute())
    config["study_options"] |= {"seed": seed, "parameter_sweep_size": nb_simulations}
    path = output / "config_heat.json"
    path.write_text(json.dumps(config, indent=4))
    command = [sys.executable, "-m", "melissa.launcher", "--config", str(path), "--project_dir", str(EXAMPLE)]
    start = time.perf_counter()
    with (output / "terminal.log").open("w") as terminal:
        status = subprocess.run(command, stdout=terminal, stderr=subprocess.STDOUT).returncode
    seconds = time.perf_counter() - start
    if status != 0:
        sys.exit(f"the study with seed {seed} failed with status {status}: see {terminal.name}")
    return json.loads((output / "study_report.json").read_text()), seconds


def verdict(report: dict[str, Any], seconds: float, nb_samples: int) -> str:
    """Say what is wrong with a study, or "good"."""
    ledger = report["ledger"]
    accounted = ledger["trained"] + sum(ledger["dropped"].values())
    faults = []
    if report["validation"]["times_better"] < LEAST_RATIO:
        faults.append("learned too little")
    if seconds > MOST_SECONDS:
        faults.append("too slow")
    if not nb_samples == ledger["declared"] == accounted:
        faults.append(f"{nb_samples} expected, {ledger['declared']} declared, {accounted} accounted for")
    return ", ".join(faults) or "good"


def main() -> int:
    """Run the studies one after the other and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--simulations", type=int, default=100)
    options = parser.parse_args()
    verdicts = []
    print("".join(f"{name:>14}" for name in COLUMNS))
    for seed in options.seeds:
        report, seconds = run_study(options.output / f"seed-{seed}", seed, options.simulations)
        validation = report["validation"]
        verdicts.append(verdict(report, seconds, 100 * options.simulations))
        figures = (
            seed,
            f"{validation['error_K']:.2f}",
            f"{validation['error_of_mean_field_K']:.1f}",
            f"{validation['times_better']:.1f}",
            report["batches"],
            f"{report['samples_per_second']:.0f}",
            f"{report['waits']['trainer_for_data_s']:.1f}",
            f"{seconds:.0f}",
            verdicts[-1],
        )
        print("".join(f"{figure:>14}" for figure in figures), flush=True)
    return 0 if set(verdicts) == {"good"} else 1


if __name__ == "__main__":
    sys.exit(main())
