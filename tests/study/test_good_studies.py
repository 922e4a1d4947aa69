"""Studies that run to their end: what they leave behind, and every way of samples into a training step."""

import re
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from studies import NB_SIMULATIONS, NB_TIME_STEPS, Study
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EVERY_SAMPLE = {(sim, step): 1 for sim in range(NB_SIMULATIONS) for step in range(NB_TIME_STEPS)}
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a study that has run to its end; all tests that only look at what it has left share it."""
    study = Study(tmp_path_factory.mktemp("finished"))
    study.solver(
        """
        print(os.getcwd(), os.environ["GREETING"], os.environ["OMP_NUM_THREADS"], *sys.argv[1:])
        solve(5)
        """
    )
    study.server(
        """
        class Server(PlainServer):
            def prepare_training_attributes(self):
                self.valid_dataloader = ["one validation batch", "another one"]
                return super().prepare_training_attributes()
        """
    )
    study.configure(
        {
            "study_options.verbosity": 2,
            "dl_config.nb_batches_update": 2,
            "client_config.command_default_args": ["3", 0.5],
            "client_config.preprocessing_commands": [
                "export GREETING=hello",
                "command_that_is_missing",
                "mkdir -p $MELISSA_SIMU_ID.work && cd $MELISSA_SIMU_ID.work",
            ],
        }
    )
    study.result = study.succeed()
    return study


def test_the_report_has_its_form_and_every_declared_step_is_trained(finished):
    report = finished.report
    figures = {
        "ledger": {
            "declared": 20,
            "trained": 20,
            "dropped": {"client_failed": 0, "stopped_early": 0, "untrained": 0},
            "duplicates_refused": 0,
        },
        "batches": 5,
        "samples_received": 20,
        "samples_delivered": 20,
        "samples_per_second": report["samples_per_second"],
        "waits": report["waits"],
        "seconds": report["seconds"],
    }
    simulations = {"planned": 4, "finished": 4, "failed": 0, "resubmitted": 0}
    assert report == {"simulations": simulations} | figures | {"ranks": [{"rank": 0} | figures]}
    assert set(report["waits"]) == {"trainer_for_data_s", "trainer_for_ranks_s", "receiver_for_room_s"}
    assert report["samples_per_second"] > 0
    assert report["seconds"] > 0


def test_the_training_step_gets_every_sample_once_in_the_order_of_arrival(finished):
    assert finished.counts() == EVERY_SAMPLE
    arrived = [key for batch in finished.seen["batches"] for key in batch]
    for simulation in range(NB_SIMULATIONS):
        assert [step for sim, step in arrived if sim == simulation] == [0, 1, 2, 3, 4]
    assert finished.seen["kinds"] == {"temperature": "float32"}


def test_hooks_are_called_in_their_order_and_number(finished):
    validations = [
        f"validation_step {batch!r} {index} {batch_idx}"
        for batch_idx in (2, 4)
        for index, batch in enumerate(["one validation batch", "another one"])
    ]
    assert finished.seen["calls"] == [
        "prepare_training_attributes",
        "on_train_start",
        *validations[:2],
        "checkpoint 2",
        *validations[2:],
        "checkpoint 4",
        "checkpoint 5",
        "on_train_end",
    ]


def test_the_log_lines_that_tools_parse_are_in_the_servers_log_in_their_order(finished):
    log = finished.server_log
    assert re.fullmatch(rf"({TIME} (INFO|WARNING) .*\n)+", log)
    created = re.findall(rf"{TIME} INFO created client\.(\d+)\.sh with parameters \[(.*)\]\n", log)
    assert [int(simulation) for simulation, _ in created] == [0, 1, 2, 3]
    for simulation, parameters in created:
        drawn = parameters.split(", ")
        assert len(drawn) == 2
        assert all(re.fullmatch(r"0\.\d+", number) for number in drawn)
        out = finished.read(f"stdout/simulation{simulation}.out").split()
        assert out[-2:] == drawn
    sent = [int(number) for number in re.findall(rf"{TIME} INFO sim-id=(\d+) has finished sending\n", log)]
    assert sorted(sent) == [0, 1, 2, 3]
    for simulation in sent:
        created_at = log.index(f"created client.{simulation}.sh")
        assert created_at < log.index(f"sim-id={simulation} has finished sending")
    assert log.endswith(" INFO Server finalizing with status 0\n")
    assert re.fullmatch(rf"({TIME} \w+ .*\n)+", finished.launcher_log)


def test_the_files_of_a_study_are_where_they_belong(finished):
    files = {str(path.relative_to(finished.output)) for path in finished.output.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("tensorboard/gpu_0/events.out.tfevents.")}
    assert len(events) == 1
    # The newest state of the server, and the one before it: of the fourth batch, or an earlier one if that
    # was still being written then.
    states = {name for name in files if name.startswith("checkpoints/melissa/")}
    assert {Path(name).name for name in states} == {"buffer.safetensors", "manifest.json"}
    batches = {name.split("/")[2] for name in states}
    assert "00000005" in batches
    assert len(batches) == 2
    assert files - events - states == {
        "study.json",
        "study_report.json",
        "melissa_launcher.log",
        "melissa_server_0.log",
        "seen.json",
        ".melissa/lock",
        ".melissa/study.json",
        "stdout/server.out",
        "stdout/server.err",
        *(f"stdout/simulation{simulation}.{stream}" for simulation in range(4) for stream in ("out", "err")),
        *(f"client_scripts/client.{simulation}.sh" for simulation in range(4)),
    }
    assert finished.read("study.json") == finished.config_path.read_text()
    assert finished.read("study.json").startswith("// a study of a test\n")


def test_solver_and_preprocessing_commands_share_a_shell_in_the_output_folder(finished):
    words = finished.read("stdout/simulation2.out").split()
    assert words[:5] == [str(finished.output / "2.work"), "hello", "1", "3", "0.5"]
    assert "command_that_is_missing" in finished.read("stdout/simulation2.err")


def test_tensorboard_has_the_tags_that_studies_look_for(finished):
    events = EventAccumulator(str(finished.output / "tensorboard" / "gpu_0"))
    events.Reload()
    tags = {"Loss/train", "Loss/valid", "samples_per_second", "buffer_size", "put_time", "put_get_inc"}
    assert tags <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("Loss/train")] == [1, 2, 3, 4, 5]
    assert [event.step for event in events.Scalars("samples_per_second")] == [2, 4]


def test_the_terminal_shows_folder_progress_and_the_sums(finished):
    stdout = finished.result.stdout
    assert str(finished.output) in stdout
    assert "4/4 simulations" in stdout
    for row in (r"trained\W+20\b", r"dropped\W+0\b", r"batches\W+5\b", r"simulations finished\W+4\b"):
        assert re.search(row, stdout), row
    assert "Traceback" not in finished.result.stderr


def test_a_firo_delivers_each_sample_as_often_as_asked_and_whole_batches_have_all_fields(study):
    study.solver(
        'solve(5, {"temperature": (12, "float64"), "flow": (3, "float32"), "cells": (1, "float64")})'
    )
    study.server(
        """
        class Server(PlainServer):
            def process_simulation_batch(self, batch, config_dict):
                assert batch.inputs.shape == (len(batch), 3)
                assert batch.inputs.dtype == np.float64
                np.testing.assert_array_equal(batch.inputs[:, 2], batch.time_steps)
                for name, rows in batch.fields.items():
                    self.kinds[name] = rows.dtype.name
                    for row, values in enumerate(rows):
                        expected = field_values(name, values.size, batch.time_steps[row], batch.inputs[row])
                        tolerance = 0 if name != "flow" else 1e-6
                        np.testing.assert_allclose(values, expected, rtol=tolerance)
                keys = zip(batch.simulation_ids.tolist(), batch.time_steps.tolist(), strict=True)
                return batch.fields["temperature"].copy(), list(keys)
        """
    )
    study.configure(
        {
            "study_options.field_names": ["flow", "temperature", "cells"],
            "dl_config.buffer": "FIRO",
            "dl_config.pseudo_epochs": 2,
            "dl_config.data_type": "float64",
        }
    )
    study.succeed()
    study.expect_ledger(20)
    assert study.counts() == dict.fromkeys(EVERY_SAMPLE, 2)
    assert study.seen["kinds"] == {"flow": "float64", "temperature": "float64", "cells": "float64"}
    assert list(study.seen["kinds"]) == ["flow", "temperature", "cells"]
    assert study.seen["nb_expected_batches"] == 10
    assert study.report["samples_delivered"] == 40
    assert "fast lane" in study.server_log


def test_a_reservoir_delivers_each_sample_at_least_once_although_it_holds_few(study):
    study.solver('solve(5, {"temperature": (12, "float64"), "count": (2, "int32")})')
    study.configure(
        {
            "study_options.field_names": ["temperature", "count"],
            "dl_config.buffer": "Reservoir",
            "dl_config.buffer_size": 8,
            "dl_config.per_server_watermark": 6,
            "dl_config.data_type": "as_sent",
        }
    )
    study.succeed()
    study.expect_ledger(20)
    assert set(study.counts()) == set(EVERY_SAMPLE)
    assert study.seen["kinds"] == {"temperature": "float64", "count": "int32"}
    assert study.report["samples_delivered"] == sum(study.counts().values())


def test_a_batch_reservoir_repeats_no_sample_in_a_batch_and_the_number_of_steps_is_learned(study):
    study.configure(
        {
            "study_options.nb_time_steps": None,
            "dl_config.buffer": "BatchReservoir",
            "dl_config.per_server_watermark": 5,
            "dl_config.buffer_size": 10,
        }
    )
    study.succeed()
    study.expect_ledger(20)
    assert set(study.counts()) == set(EVERY_SAMPLE)
    for batch in study.seen["batches"]:
        assert len(set(map(tuple, batch))) == len(batch)
    assert study.seen["nb_time_steps"] == 5


def test_a_torch_server_without_a_hook_for_data_gets_inputs_and_fields(study):
    study.server(
        """
        class Server(LearningServer):
            def prepare_training_attributes(self):
                self.valid_dataloader = [(torch.zeros(2, 3), torch.zeros(2, 12))]
                return super().prepare_training_attributes()
        """,
        base="learning",
    )
    study.configure(
        {
            "dl_config.buffer": "Reservoir",
            "dl_config.per_server_watermark": 10,
            "dl_config.nb_batches_update": 2,
        }
    )
    result = study.succeed()
    study.expect_ledger(20)
    assert len(study.seen["counts"]) == 20
    checkpoint = torch.load(study.output / "checkpoints" / "model.pt", weights_only=True)
    assert checkpoint["batch"] == study.report["batches"]
    assert checkpoint["model_state_dict"]["weight"].shape == (12, 3)
    assert "Loss/train" in result.stdout


@pytest.fixture
def mpiexec(monkeypatch):
    """Return the command that starts three ranks; the requirements of the tests have it."""
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    program = shutil.which("mpiexec", path=Path(sys.executable).parent) or shutil.which("mpiexec")
    assert program is not None, "there is no mpiexec"
    return [program, "--oversubscribe", "--bind-to", "none", "-n", "3"]


def test_the_ranks_of_parallel_solvers_send_parts_that_meet_in_a_sample(study, mpiexec):
    study.solver(
        """
        from mpi4py import MPI

        from melissa_api import melissa_init, melissa_send

        comm = MPI.COMM_WORLD
        mine = np.array_split(np.arange(14), comm.Get_size())[comm.Get_rank()]
        melissa_init("temperature", len(mine), comm)
        for time_step in range(5):
            melissa_send("temperature", field_values("temperature", 14, time_step, PARAMETERS)[mine])
        melissa_finalize()
        """
    )
    study.configure({"client_config.executable_command": shlex.join([*mpiexec, sys.executable, "solver.py"])})
    study.configure({"study_options.parameter_sweep_size": 2})
    study.succeed()
    study.expect_ledger(10)
    assert Counter(study.counts().values()) == {1: 10}
