"""Small parts of the server: communicator, expectations, progress, parameters, the report."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from melissa.exceptions import ConfigurationFileError, FatalError, UnsupportedConfiguration
from melissa.server.__main__ import watch_threads
from melissa.server.communicator import MpiProcesses, SingleProcess, make_communicator
from melissa.server.deep_learning.expectations import expect
from melissa.server.deep_learning.reservoir import BufferType
from melissa.server.distribution import steps_of_rank
from melissa.server.ending import StudyEnding
from melissa.server.environment import StudyEnvironment
from melissa.server.figures import RankFigures
from melissa.server.parameter_registry import ParameterRegistry, numeric_parameters, plain_list
from melissa.server.progress import StudyProgress
from melissa.server.report import StudyReport

# Communicators.


@pytest.mark.parametrize("make", [SingleProcess, MpiProcesses])
def test_alone_a_rank_hears_itself(make):
    comm = make()
    assert (comm.rank, comm.size, comm.Get_rank(), comm.Get_size()) == (0, 1, 0, 1)
    assert comm.bcast({"a": 1}) == {"a": 1}
    assert comm.allgather("here") == ["here"]
    assert comm.any(True) is True
    assert comm.any(False) is False
    assert comm.flags(5, 0.1).result() == (5, 0.1)
    comm.barrier()
    comm.Barrier()


def test_a_wait_for_other_ranks_looks_at_the_study():
    def check():
        raise RuntimeError("the study has failed")

    comm = MpiProcesses(check=check)
    pending = SimpleNamespace(Test=lambda: False)
    with pytest.raises(RuntimeError, match="the study has failed"):
        comm.wait(pending)


def test_the_launchers_environment_chooses_the_communicator():
    assert isinstance(make_communicator({}), SingleProcess)
    assert isinstance(make_communicator({"MELISSA_NB_SERVER_RANKS": "1"}), SingleProcess)
    with pytest.raises(ConfigurationFileError, match=r"3 ranks(.|\n)*MPI has started 1"):
        make_communicator({"MELISSA_NB_SERVER_RANKS": "3"})
    with pytest.raises(ConfigurationFileError, match="'many'"):
        make_communicator({"MELISSA_NB_SERVER_RANKS": "many"})


# Expectations.

STUDY = {"nb_simulations": 10, "nb_time_steps": 11, "nb_ranks": 1, "batch_size": 20}


def test_the_number_of_batches_is_known_for_fifo_and_firo():
    fifo = expect(BufferType.FIFO, buffer_size=50, watermark=0, **STUDY)
    assert (fifo.samples, fifo.batches) == (110, 6)
    assert expect(BufferType.FIFO, buffer_size=50, watermark=0, drop_last=True, **STUDY).batches == 5
    assert expect(BufferType.FIRO, buffer_size=50, watermark=20, **STUDY).batches == 6
    assert expect(BufferType.Reservoir, buffer_size=50, watermark=20, **STUDY).batches is None


def test_nothing_is_known_before_the_number_of_steps_is():
    unknown = expect(BufferType.FIFO, buffer_size=50, watermark=0, **(STUDY | {"nb_time_steps": 0}))
    assert (unknown.samples, unknown.batches) == (None, None)


def test_passes_over_all_samples_wait_for_all():
    several = expect(BufferType.FIRO, buffer_size=110, watermark=5, pseudo_epochs=3, **STUDY)
    assert (several.watermark, several.batches) == (110, 17)


@pytest.mark.parametrize("distribution", ["round_robin", "simulation"])
@pytest.mark.parametrize("nb_ranks", [1, 2, 3, 7])
def test_a_rank_expects_just_the_steps_that_the_rule_of_distribution_sends_it(nb_ranks, distribution):
    for nb_simulations, nb_time_steps in [(1, 1), (5, 3), (4, 7), (6, 6)]:
        sent = [0] * nb_ranks
        for simulation in range(nb_simulations):
            for step in range(nb_time_steps):
                sent[(simulation + (step if distribution == "round_robin" else 0)) % nb_ranks] += 1
        counted = [
            steps_of_rank(
                rank,
                nb_ranks=nb_ranks,
                nb_simulations=nb_simulations,
                nb_time_steps=nb_time_steps,
                distribution=distribution,
            )
            for rank in range(nb_ranks)
        ]
        assert counted == sent


def test_ranks_train_as_many_batches_as_the_one_that_has_the_fewest_or_all_of_them():
    study = STUDY | {"nb_simulations": 3, "nb_time_steps": 10, "nb_ranks": 2, "batch_size": 5}
    uneven = study | {"distribution": "simulation", "buffer_size": 50, "watermark": 0}
    assert [expect(BufferType.FIFO, rank=rank, **uneven).samples for rank in (0, 1)] == [20, 10]
    assert [expect(BufferType.FIFO, rank=rank, **uneven).batches for rank in (0, 1)] == [2, 2]
    assert [expect(BufferType.FIFO, rank=rank, drain="all", **uneven).batches for rank in (0, 1)] == [4, 4]


def test_every_rank_refuses_a_watermark_that_one_of_them_cannot_reach():
    study = STUDY | {"nb_simulations": 3, "nb_time_steps": 10, "nb_ranks": 2}
    for rank in (0, 1):
        with pytest.raises(UnsupportedConfiguration, match="10 samples come to server rank 1 of 2"):
            expect(
                BufferType.FIRO, rank=rank, distribution="simulation", buffer_size=50, watermark=15, **study
            )


def test_what_cannot_be_reached_is_refused_with_both_numbers():
    with pytest.raises(UnsupportedConfiguration, match=r"per_server_watermark is 111(.|\n)*110 samples"):
        expect(BufferType.Reservoir, buffer_size=200, watermark=111, **STUDY)
    with pytest.raises(UnsupportedConfiguration, match=r"buffer_size is 100(.|\n)*110 samples"):
        expect(BufferType.FIRO, buffer_size=100, watermark=0, pseudo_epochs=2, **STUDY)
    with pytest.raises(UnsupportedConfiguration, match="nb_time_steps"):
        expect(BufferType.FIRO, buffer_size=9, watermark=0, pseudo_epochs=2, **(STUDY | {"nb_time_steps": 0}))


# Parameters.


def test_drawn_values_become_plain_python():
    values = plain_list(np.array([1, 2]))
    assert values == [1, 2]
    assert all(type(value) is int for value in values)
    assert [type(value) for value in plain_list([np.float32(0.5), "text", np.str_("t"), 3])] == [
        float,
        str,
        str,
        int,
    ]


def test_the_last_numbers_travel_and_the_rest_stays():
    assert numeric_parameters(["--heat", 1.0, 2], 2) == [1.0, 2.0]
    assert numeric_parameters([1.0], 0) == []
    with pytest.raises(ConfigurationFileError, match=r"1 parameters(.|\n)*nb_parameters is 3"):
        numeric_parameters([1.0], 3)


def test_what_was_drawn_cannot_be_changed_by_a_reader():
    registry = ParameterRegistry()
    registry.record(1, 0, [1, 2])
    registry.parameters(1, 0).append(3)
    assert registry.parameters(1, 0) == [1, 2]
    assert registry.parameters(1, 1) is None


# Ending, progress, environment.


def test_the_first_failure_and_the_first_stop_count():
    ending = StudyEnding()
    assert ending.check() is False
    assert ending.stop("first", status=143)
    assert not ending.stop("second")
    assert (ending.stop_reason, ending.stop_status, ending.check()) == ("first", 143, True)
    ending.fail(ValueError("one"))
    ending.fail(ValueError("two"))
    with pytest.raises(ValueError, match="one"):
        ending.check()


def test_losses_are_kept_up_to_a_number_and_other_scalars_are_not():
    progress = StudyProgress()
    progress.scalar("buffer_size", 3.0)
    for number in range(40):
        progress.scalar(f"Loss/{number}", 1.0)
        progress.scalar(f"Loss/{number}", number)
    losses = progress.snapshot()["losses"]
    assert len(losses) == StudyProgress.NB_LOSSES
    assert losses["Loss/3"] == 3


def test_a_missing_variable_of_the_launcher_is_named_with_the_command_to_use():
    with pytest.raises(FatalError, match=r"no MELISSA_LAUNCHER_ADDRESS(.|\n)*melissa-launcher"):
        StudyEnvironment.read({})


def test_the_study_key_is_not_shown(tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text("ab" * 32)
    variables = {
        "MELISSA_LAUNCHER_ADDRESS": "127.0.0.1:1",
        "MELISSA_KEY_FILE": str(key_file),
        "MELISSA_STUDY_EPOCH": "1",
        "MELISSA_OUTPUT_DIR": str(tmp_path),
    }
    environment = StudyEnvironment.read(variables)
    assert environment.key == b"\xab" * 32
    assert "xab" not in repr(environment)
    with pytest.raises(FatalError, match="MELISSA_STUDY_EPOCH is 'one'"):
        StudyEnvironment.read(variables | {"MELISSA_STUDY_EPOCH": "one"})
    with pytest.raises(FatalError, match="study key"):
        StudyEnvironment.read(variables | {"MELISSA_KEY_FILE": str(tmp_path / "none")})


@pytest.mark.parametrize(("name", "ends_the_study"), [("melissa-pinger", True), ("of-the-user", False)])
def test_no_thread_dies_without_a_word(monkeypatch, log, name, ends_the_study):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    ending = StudyEnding()
    watch_threads(ending, None)
    thread = threading.Thread(target=lambda: 1 / 0, name=name)
    thread.start()
    thread.join()
    assert f"thread {name} died of ZeroDivisionError" in log.text
    assert "Traceback" in log.text
    assert isinstance(ending.error, ZeroDivisionError) == ends_the_study


# The report.


def report(validation=None, nb_ranks=1, **ledger):
    figures = {
        "declared": 100, "trained": 90, "dropped_client_failed": 4, "dropped_stopped_early": 0,
        "dropped_untrained": 6, "duplicates_refused": 2,
    } | ledger  # fmt: skip
    progress = StudyProgress()
    progress.training_begins()
    for _ in range(5):
        progress.delivered(20)
    progress.training_ends()
    simulations = {"planned": 4, "finished": 3, "failed": 2, "resubmitted": 1}
    control = SimpleNamespace(simulation_counts=lambda: simulations)
    receiver = SimpleNamespace(
        ledger=lambda reason: figures,
        counters=lambda: {"samples_received": 96, "room_wait_s": 0.25},
        reception_over=True,
    )
    ranks = [RankFigures.of(rank, progress, receiver, final_reason="untrained") for rank in range(nb_ranks)]
    return StudyReport.of_study(control=control, ranks=ranks, validation=validation)


def test_the_report_has_the_documented_form(tmp_path):
    made = report()
    made.check()
    made.write(tmp_path / "study_report.json")
    content = json.loads((tmp_path / "study_report.json").read_text())
    assert content["simulations"] == {"planned": 4, "finished": 3, "failed": 2, "resubmitted": 1}
    assert content["ledger"] == {
        "declared": 100,
        "trained": 90,
        "dropped": {"client_failed": 4, "stopped_early": 0, "untrained": 6},
        "duplicates_refused": 2,
    }
    assert (content["batches"], content["samples_delivered"], content["samples_received"]) == (5, 100, 96)
    assert set(content["waits"]) == {"trainer_for_data_s", "trainer_for_ranks_s", "receiver_for_room_s"}
    assert content["seconds"] >= 0
    assert content["ranks"][0]["ledger"] == content["ledger"]
    assert any("trained" in line and "90" in line for line in made.table())
    assert "waited for data" in made.waits()


def test_the_reports_figures_are_the_sums_over_the_ranks_which_stand_beside_them():
    content = report(nb_ranks=3).content
    assert [rank["rank"] for rank in content["ranks"]] == [0, 1, 2]
    assert content["ledger"]["dropped"] == {"client_failed": 12, "stopped_early": 0, "untrained": 18}
    assert (content["batches"], content["samples_received"]) == (15, 288)
    assert content["ranks"][2]["ledger"]["trained"] == 90
    assert content["waits"]["receiver_for_room_s"] == 0.75


def test_what_a_study_says_of_its_model_stands_in_the_report_as_json_can_have_it():
    said = {"error": np.float32(0.5), "steps": np.int64(3), "path": Path("model.pt"), "good": True}
    assert report(said).content["validation"] == {"error": 0.5, "steps": 3, "path": "model.pt", "good": True}
    assert "validation" not in report().content


def test_a_ledger_that_does_not_balance_is_an_error_with_the_figures():
    with pytest.raises(FatalError, match=r"101 time steps were declared(.|\n)*make 100"):
        report(declared=101).check()


def test_reception_is_held_until_training_that_is_interrupted_has_saved():
    ending, progress = StudyEnding(), StudyProgress()
    progress.saves_when_stopped = True
    assert not ending.holds_reception(progress.saves_when_stopped)
    ending.stop("SIGTERM came", status=143)
    assert ending.holds_reception(progress.saves_when_stopped)
    assert progress.snapshot()["saves_when_stopped"]
    progress.saves_when_stopped = False
    assert not ending.holds_reception(progress.saves_when_stopped)


def test_a_checkpoint_within_another_one_is_told_until_the_outer_one_is_written():
    progress = StudyProgress()
    with progress.saving():
        with progress.saving():
            pass
        assert progress.snapshot()["is_saving"]
    assert not progress.snapshot()["is_saving"]
