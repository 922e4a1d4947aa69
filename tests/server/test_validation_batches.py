"""Validation by simulations of its own: their parameters, and the batches that their samples make."""

import numpy as np
import pytest

from melissa._melissa import Batch
from melissa.server.control import Draw
from melissa.server.deep_learning.reservoir import FIFO
from melissa.server.deep_learning.sample_arrays import SampleArrays
from melissa.server.deep_learning.validation_batches import ValidationBatches
from melissa.server.parameters import ParameterSamplerType, RandomUniform, make_parameter_sampler
from melissa.server.validation_draws import ValidationDraws


@pytest.fixture
def buffer(make_sample):
    buffer = FIFO(20)
    for index in range(10):
        buffer.put(make_sample(index, time_step=index + 3, parameters=(float(index), 0.5)))
    return buffer


class Arriving:
    """Samples that come in portions."""

    def __init__(self, samples):
        self.samples, self.portion = samples, []

    def come(self, number):
        self.portion += self.samples[:number]
        del self.samples[:number]

    def take(self):
        portion, self.portion = self.portion, []
        return portion


def test_batches_grow_with_what_comes_and_whole_ones_are_made_once(buffer):
    arriving, made = Arriving(buffer.native.samples()), []

    def make_batch(samples):
        made.append([sample.simulation_id for sample in samples])
        return made[-1]

    batches = ValidationBatches(arriving.take, make_batch, 4)
    assert not batches.look()
    assert list(batches) == []
    arriving.come(3)
    assert batches.look()
    assert list(batches) == list(batches) == [[0, 1, 2]]
    arriving.come(6)
    assert list(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    arriving.come(1)
    assert list(batches) == list(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert (len(batches), batches.nb_samples) == (3, 10)
    assert made.count([0, 1, 2, 3]) == made.count([8, 9]) == 1


def test_samples_put_together_look_like_a_batch_of_the_extension(buffer):
    samples = buffer.native.samples()
    arrays = SampleArrays(samples, buffer.field_names)
    batch = Batch(buffer.native, 10)
    buffer.native.sample_into(batch)
    assert len(arrays) == len(batch) == 10
    for name in ("inputs", "parameters", "simulation_ids", "draws", "time_steps"):
        ours, theirs = getattr(arrays, name), getattr(batch, name)
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype, name
    assert list(arrays.fields) == list(batch.fields) == ["u"]
    np.testing.assert_array_equal(arrays.fields["u"], batch.fields["u"])
    assert arrays.fields["u"].dtype == batch.fields["u"].dtype


def sampler(kind, seed=3):
    return make_parameter_sampler(kind, nb_params=2, nb_sims=5, l_bounds=[0.0], u_bounds=[1.0], seed=seed)


def draw_of(sampler):
    def draw():
        drawn = sampler.draw()
        return Draw(drawn, sampler.process_drawn(drawn))

    return draw


@pytest.mark.parametrize("kind", ParameterSamplerType)
def test_training_parameters_are_the_same_with_and_without_validation(kind):
    alone, beside = sampler(kind), sampler(kind)
    validation = ValidationDraws(beside, draw_of(beside), 3)
    drawn = [tuple(validation().parameters) for _ in range(3)]
    training = [tuple(beside.draw()) for _ in range(5)]
    assert training == [tuple(alone.draw()) for _ in range(5)]
    assert len({*training, *drawn}) == 8


def test_further_draws_for_validation_are_fresh_ones_too():
    beside = sampler(ParameterSamplerType.HALTON)
    validation = ValidationDraws(beside, draw_of(beside), 2)
    drawn = [tuple(validation().parameters) for _ in range(4)]
    assert len(set(drawn)) == 4
    assert all(type(word) is float for word in validation().words)


def test_a_sampler_with_a_draw_of_its_own_is_asked_first():
    class Counting(RandomUniform):
        def draw(self):
            self.number = getattr(self, "number", 0) + 1
            return np.array([self.number, 0.0])

    counting = make_parameter_sampler(Counting, nb_params=2, nb_sims=5, l_bounds=[0.0], u_bounds=[1.0])
    validation = ValidationDraws(counting, draw_of(counting), 2)
    assert counting.draw()[0] == 3
    assert [validation().parameters[0] for _ in range(3)] == [1, 2, 4]


def test_parameters_that_a_study_draws_itself_are_asked_for_first():
    numbers = iter(range(10))
    validation = ValidationDraws(None, lambda: Draw([next(numbers)], [0]), 2)
    assert next(numbers) == 2
    assert [validation().parameters for _ in range(2)] == [[0], [1]]
