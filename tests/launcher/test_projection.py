"""What a study in small says of the whole."""

import io

import pytest
from rich.console import Console

from melissa.launcher.fast_dev_run import is_fast_dev_run, projection, projection_table, shortened

CONFIG = {
    "study_options": {"parameter_sweep_size": 100, "nb_time_steps": 50},
    "dl_config": {
        "buffer": "FIFO",
        "pseudo_epochs": 1,
        "nb_batches_update": 100,
        "per_server_watermark": None,
    },
    "launcher_config": {"job_limit": 11, "fault_tolerance": True},
    "ignore_client_death": True,
}
MEASURED = {
    "nb_ranks": 2,
    "nb_batches": 2,
    "batch_size": 5,
    "batch_seconds": 0.1,
    "validation_seconds": 2.0,
    "nb_time_steps": 50,
    "step_seconds": 0.5,
    "startup_seconds": 5.0,
    "simulation_seconds": 40.0,
    "buffer_size": 1000,
    "sample_bytes": 4000,
    "buffer_bytes": 4_000_000,
    "buffer_used": 0.25,
    "slots": 1000,
    "peak_bytes": 10_000_000,
    "seconds": 60.0,
}


def config(**training):
    return CONFIG | {"dl_config": CONFIG["dl_config"] | training}


def test_the_study_in_small_has_one_client_and_the_study_stays_what_it_is():
    short = shortened(CONFIG)
    assert short["study_options"]["parameter_sweep_size"] == 1
    assert not short["launcher_config"]["fault_tolerance"]
    assert not short["ignore_client_death"]
    assert CONFIG["study_options"]["parameter_sweep_size"] == 100
    assert CONFIG["launcher_config"]["fault_tolerance"]


def test_simulations_run_side_by_side_and_a_fifo_trains_each_sample_once():
    whole = projection(CONFIG, MEASURED)
    assert whole["at_once"] == 10
    assert whole["production_seconds"] == 10 * 40.0
    assert whole["samples"] == 5000
    assert whole["samples_per_second"] == 5000 / 400.0
    # 2500 samples per rank in batches of 5, and five validations.
    assert whole["batches"] == 500
    assert whole["training_seconds"] == pytest.approx(500 * 0.1 + 5 * 2.0)
    assert whole["seconds"] == 400.0
    assert whole["trained_per_second"] == pytest.approx(100.0)


def test_a_simulation_that_had_not_ended_is_extrapolated_from_its_time_steps():
    whole = projection(CONFIG, MEASURED | {"simulation_seconds": None})
    assert whole["simulation_seconds"] == 5.0 + 50 * 0.5
    assert (
        projection(CONFIG, MEASURED | {"simulation_seconds": None, "step_seconds": None})["seconds"] is None
    )


def test_a_firo_delivers_each_sample_as_often_as_it_has_epochs():
    assert projection(config(buffer="FIRO", pseudo_epochs=3), MEASURED)["batches"] == 1500


def test_a_reservoir_trains_while_simulations_run_and_then_what_is_left():
    whole = projection(config(buffer="Reservoir", per_server_watermark=500), MEASURED)
    # A fifth of the 400 s passes before the watermark; 1000 samples are left at the end.
    assert whole["batches"] == pytest.approx(320.0 / 0.1 + 1000 / 5, abs=1)


def test_memory_is_what_was_used_and_the_part_of_the_buffer_that_was_not():
    assert projection(CONFIG, MEASURED)["rank_bytes"] == 10_000_000 + 3_000_000


@pytest.mark.parametrize("missing", [{}, {"simulation_seconds": None}, {"step_seconds": None}])
def test_the_table_says_what_is_known_and_what_is_not(missing):
    unknown = {"validation_seconds": None, "batch_seconds": None, "nb_time_steps": None}
    for measured in (MEASURED | missing, MEASURED | missing | unknown):
        output = io.StringIO()
        Console(file=output, width=120).print(projection_table(CONFIG, measured))
        assert "whole study" in output.getvalue()
    assert "?" in output.getvalue()


def test_only_the_variable_s_one_value_makes_a_study_short():
    assert is_fast_dev_run({"MELISSA_FAST_DEV_RUN": "1"})
    assert not is_fast_dev_run({"MELISSA_FAST_DEV_RUN": "0"})
    assert not is_fast_dev_run({})
