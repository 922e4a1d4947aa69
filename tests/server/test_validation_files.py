"""Samples for validation in checkpoints: written once, and put back where all of a simulation is there."""

import json
import logging

import numpy as np
import pytest

from melissa._melissa import Buffer
from melissa.exceptions import CheckpointError
from melissa.server.checkpoint.study_state import StudyState
from melissa.server.checkpoint.validation_files import ValidationFiles, load_validation
from melissa.server.deep_learning.validation_batches import ValidationBatches
from melissa.server.simulation import Simulation, SimulationStatus

NB_STEPS = 3


@pytest.fixture
def like():
    buffer = Buffer("FIFO", 40)
    buffer.bind([("u", 2, "float32"), ("v", 1, "float64")], 1)
    return buffer


class Arriving:
    """A receiver to which samples come."""

    def __init__(self, like):
        self.like, self.came = like, []

    def come(self, simulation, *steps, draw=0):
        for step in steps:
            fields = [np.full(2, simulation + step / 10, np.float32), np.full(1, step / 10)]
            self.like.put(simulation, step, fields, [simulation / 10], draw=draw)
            self.came.append(self.like.get(1.0))

    def take(self):
        came, self.came = self.came, []
        return came


@pytest.fixture
def arriving(like):
    return Arriving(like)


def batches_of(arriving, **options):
    return ValidationBatches(
        arriving.take, lambda samples: [keys(samples)], 100, keeps_unsaved=True, **options
    )


def keys(samples):
    return [(sample.simulation_id, sample.draw, sample.time_step) for sample in samples]


def state(files, *simulations):
    """What a manifest says of such simulations, read back from it."""
    draws = [(known.id, known.draw, [0.5]) for known in simulations]
    state = StudyState.of_simulations([], [], 0, None, simulations, draws)
    state.validation_files = files
    return StudyState.from_dict(json.loads(json.dumps(state.to_dict())))


def finished(number, draw=0, steps_complete=NB_STEPS):
    return Simulation(
        number, status=SimulationStatus.FINISHED, steps_complete=steps_complete, draw=draw, is_validation=True
    )


def test_each_sample_is_written_once_and_all_come_back_as_they_came(like, arriving, tmp_path):
    folder = tmp_path / "validation"
    files = ValidationFiles(folder, batches_of(arriving), like, {})
    assert files.save() == {}
    arriving.come(7, 0, 1)
    first = files.save()
    before = {name: (folder / name).stat() for name in first}
    arriving.come(8, 0, 1, 2)
    arriving.come(7, 2)
    assert len(files.save()) == 2
    assert files.save() == files.save()
    assert sorted(path.name for path in folder.iterdir()) == ["00000001.safetensors", "00000002.safetensors"]
    for name, stat in before.items():
        assert (folder / name).stat() == stat
    again = load_validation(folder, state(files.save(), finished(7), finished(8)))
    assert keys(again.samples) == [(7, 0, 0), (7, 0, 1), (8, 0, 0), (8, 0, 1), (8, 0, 2), (7, 0, 2)]
    assert [known.status for known in again.simulations] == [SimulationStatus.FINISHED] * 2
    assert all(known.is_validation for known in again.simulations)
    assert again.files == files.save()
    sample = again.samples[4]
    np.testing.assert_array_equal(sample.fields[0], np.full(2, 8.2, np.float32))
    np.testing.assert_array_equal(sample.fields[1], [0.2])
    assert sample.parameters == [0.8]


def test_a_simulation_that_is_not_complete_runs_again_and_leaves_nothing_behind(like, arriving, tmp_path):
    arriving.come(7, 0, 1, 2)
    arriving.come(8, 0, 1)
    files = ValidationFiles(tmp_path, batches_of(arriving), like, {}).save()
    running = Simulation(8, status=SimulationStatus.RUNNING, steps_complete=2, attempt=3, is_validation=True)
    again = load_validation(tmp_path, state(files, finished(7), running))
    assert keys(again.samples) == [(7, 0, 0), (7, 0, 1), (7, 0, 2)]
    seven, eight = again.simulations
    assert (seven.is_final, eight.is_final) == (True, False)
    assert (eight.attempt, eight.steps_complete, eight.parameters) == (3, 0, [0.5])
    # It has sent all when the server dies again: what came twice counts once.
    arriving.come(8, 0, 1, 2)
    files = ValidationFiles(tmp_path, batches_of(arriving), like, again.files).save()
    again = load_validation(tmp_path, state(files, finished(7), finished(8)))
    assert sorted(keys(again.samples)) == [(number, 0, step) for number in (7, 8) for step in range(3)]


def test_what_was_sent_for_parameters_that_were_drawn_anew_is_left_out(like, arriving, tmp_path):
    arriving.come(7, 0, 1)
    arriving.come(7, 0, 1, 2, draw=1)
    files = ValidationFiles(tmp_path, batches_of(arriving), like, {}).save()
    again = load_validation(tmp_path, state(files, finished(7, draw=1)))
    assert keys(again.samples) == [(7, 1, 0), (7, 1, 1), (7, 1, 2)]


@pytest.mark.parametrize("damage", ["a bit", "gone"])
def test_of_a_damaged_file_the_simulations_run_again_and_the_log_says_so(
    damage, like, arriving, tmp_path, caplog
):
    files = ValidationFiles(tmp_path, batches_of(arriving), like, {})
    for number in (7, 8):
        arriving.come(number, 0, 1, 2)
        files.save()
    damaged = tmp_path / "00000001.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.unlink()
    if damage == "a bit":
        damaged.write_bytes(content)
    with caplog.at_level(logging.WARNING, "melissa"):
        again = load_validation(tmp_path, state(files.save(), finished(7), finished(8)))
    assert keys(again.samples) == [(8, 0, 0), (8, 0, 1), (8, 0, 2)]
    assert [known.is_final for known in again.simulations] == [False, True]
    assert list(again.files) == ["00000002.safetensors"]
    assert "samples for validation are lost, and their simulations run again" in caplog.text
    assert "00000001.safetensors" in caplog.text


def test_a_checkpoint_of_before_such_files_has_nothing_to_put_back(tmp_path):
    old = {"draws": [], "simulations": [], "nb_resubmitted": 0, "expected_steps": None}
    again = load_validation(tmp_path, StudyState.from_dict(old))
    assert (again.simulations, again.samples, again.files) == ([], [], {})


def test_samples_that_could_not_be_written_are_written_the_next_time(like, arriving, tmp_path):
    folder = tmp_path / "a file, no folder"
    folder.touch()
    files = ValidationFiles(folder, batches_of(arriving), like, {})
    arriving.come(7, 0, 1)
    with pytest.raises((OSError, CheckpointError)):
        files.save()
    folder.unlink()
    arriving.come(7, 2)
    again = load_validation(folder, state(files.save(), finished(7)))
    assert keys(again.samples) == [(7, 0, 0), (7, 0, 1), (7, 0, 2)]


def test_many_samples_are_written_in_several_files(like, arriving, tmp_path, monkeypatch):
    monkeypatch.setattr("melissa.server.checkpoint.validation_files.PIECE", 32)
    arriving.come(7, 0, 1, 2)
    files = ValidationFiles(tmp_path, batches_of(arriving), like, {}).save()
    assert len(files) == 2
    again = load_validation(tmp_path, state(files, finished(7)))
    assert keys(again.samples) == [(7, 0, 0), (7, 0, 1), (7, 0, 2)]


def test_samples_of_before_a_restart_come_first_in_batches_and_are_not_written_again(like, arriving):
    arriving.come(7, 0, 1, 2)
    batches = batches_of(arriving, restored=arriving.take())
    arriving.come(8, 0)
    assert keys(batches.take_unsaved()) == [(8, 0, 0)]
    assert batches.look()
    assert list(batches) == [[[(7, 0, 0), (7, 0, 1), (7, 0, 2), (8, 0, 0)]]]
    assert batches.take_unsaved() == []
