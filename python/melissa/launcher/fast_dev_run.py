"""``melissa-launcher --fast-dev-run``: the study in small, and what it says of the study as a whole."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from melissa.launcher.schema import buffer_kind
from melissa.launcher.wording import count, duration, significant

__all__ = ["FAST_DEV_RUN", "is_fast_dev_run", "projection", "projection_table", "shortened"]

FAST_DEV_RUN = "MELISSA_FAST_DEV_RUN"
"""Variable that tells a server that its study is to be a short one."""
NB_BATCHES = 2


def is_fast_dev_run(environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether this process belongs to a study in small."""
    return environment.get(FAST_DEV_RUN) == "1"


def shortened(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the study in small: one client, and one for validation where there are any.

    The failure of a client ends it.

    Launcher and server both make it of the study's own; what a server's class may set itself, the server
    shortens.
    """
    short = copy.deepcopy(dict(config))
    study = short["study_options"]
    study["parameter_sweep_size"] = 1
    study["validation_sweep_size"] = min(1, study.get("validation_sweep_size", 0))
    short["ignore_client_death"] = False
    short["launcher_config"]["fault_tolerance"] = False
    return short


def projection(config: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what the study as a whole would take, in seconds, bytes and numbers; None is not known.

    `config` is the whole study's, `measured` what the server of the short one reports under "fast_dev_run".
    Simulations that run at once are taken to be as fast as one alone, and training beside them, too.
    """
    study, launcher, training = config["study_options"], config["launcher_config"], config["dl_config"]
    simulations = study["parameter_sweep_size"]
    at_once = min(simulations, launcher["job_limit"] - 1)
    steps = study["nb_time_steps"] or measured["nb_time_steps"]
    simulation = measured["simulation_seconds"]
    if simulation is None and steps is not None and measured["step_seconds"] is not None:
        simulation = measured["startup_seconds"] + steps * measured["step_seconds"]
    production = None if simulation is None else simulation * -(-simulations // at_once)
    samples = None if steps is None else simulations * steps
    batch = measured["batch_seconds"]
    batches = _batches(training, measured, samples, production)
    consumption = None
    if batches is not None and batch is not None:
        validations = batches // training["nb_batches_update"]
        consumption = batches * batch + validations * (measured["validation_seconds"] or 0.0)
    known = [seconds for seconds in (production, consumption) if seconds is not None]
    return {
        "samples": samples,
        "at_once": at_once,
        "simulation_seconds": simulation,
        "production_seconds": production,
        "samples_per_second": samples / production if samples and production else None,
        "batches": batches,
        "training_seconds": consumption,
        "trained_per_second": measured["batch_size"] * measured["nb_ranks"] / batch if batch else None,
        "seconds": max(known) if production is not None and known else None,
        "rank_bytes": measured["peak_bytes"] + measured["buffer_bytes"] * (1.0 - measured["buffer_used"]),
    }


def _batches(
    training: Mapping[str, Any],
    measured: Mapping[str, Any],
    samples: int | None,
    production: float | None,
) -> float | None:
    """Return how many batches each rank trains: of a reservoir as many as fit beside the simulations."""
    if samples is None:
        return None
    per_rank, size = samples / measured["nb_ranks"], measured["batch_size"]
    if buffer_kind(training["buffer"]) in ("FIFO", "FIRO"):
        return float(-(-per_rank * training["pseudo_epochs"] // size))
    drained = min(per_rank, measured["buffer_size"]) / size
    if production is None or not measured["batch_seconds"]:
        return None
    gathering = production * min(1.0, (training["per_server_watermark"] or 0) / per_rank)
    return float((production - gathering) // measured["batch_seconds"] + drained)


def projection_table(config: Mapping[str, Any], measured: Mapping[str, Any]) -> Table:
    """Make the table that the user sees: what was measured, and what follows for the whole study."""
    table = Table(
        title="fast dev run: what the whole study would take",
        title_justify="left",
        title_style="bold",
        box=box.ROUNDED,
    )
    table.add_column("", style="bright_black")
    table.add_column("measured", justify="right")
    table.add_column("whole study", justify="right")
    table.add_column("")
    for label, was, will_be, words in _rows(config, measured, projection(config, measured)):
        table.add_row(label, Text(was), Text(will_be), Text(words))
    return table


def _rows(
    config: Mapping[str, Any], measured: Mapping[str, Any], whole: Mapping[str, float | None]
) -> Iterator[tuple[str, str, str, str]]:
    simulations = config["study_options"]["parameter_sweep_size"]
    one = whole["simulation_seconds"]
    how = "" if measured["simulation_seconds"] is not None else "from its first time steps"
    at_once = f"{count(simulations)} simulations, {count(whole['at_once'] or 0)} at once"
    yield "simulation", _seconds(one), _seconds(whole["production_seconds"]), how or at_once
    if how:
        yield "", "", "", at_once
    yield "time step", _seconds(measured["step_seconds"]), _rate(whole["samples_per_second"]), "produced"
    yield "batch", _seconds(measured["batch_seconds"]), _rate(whole["trained_per_second"]), "trained"
    batches = "" if whole["batches"] is None else f"{count(whole['batches'])} batches per rank"
    yield "training", count(measured["nb_batches"]) + " batches", _seconds(whole["training_seconds"]), batches
    yield "validation", _seconds(measured["validation_seconds"]), "", "each"
    yield "sample", _bytes(measured["sample_bytes"]), "", "in the buffer"
    slots = f"{count(measured['slots'])} slots per rank"
    yield (
        "buffer",
        _bytes(measured["buffer_bytes"] * measured["buffer_used"]),
        _bytes(measured["buffer_bytes"]),
        slots,
    )
    yield "memory", _bytes(measured["peak_bytes"]), _bytes(whole["rank_bytes"]), "of a server rank"
    yield "time", _seconds(measured["seconds"]), _seconds(whole["seconds"]), _bound(whole)


def _bound(whole: Mapping[str, float | None]) -> str:
    production, consumption = whole["production_seconds"], whole["training_seconds"]
    if production is None or consumption is None:
        return ""
    return "training is the longer part" if consumption > production else "simulations are the longer part"


def _seconds(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{significant(value)} s" if value < 100 else duration(value)


def _rate(value: float | None) -> str:
    return "?" if value is None else f"{significant(value)} samples/s"


def _bytes(value: float | None) -> str:
    if value is None:
        return "?"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{significant(value)} {unit}"
        value /= 1000
    return f"{significant(value)} TB"
