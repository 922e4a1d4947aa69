"""Samplers that a study writes itself: what may be overridden, and how several mix-ins share a class."""

import numpy as np
import pytest

from melissa.exceptions import ConfigurationFileError
from melissa.server.parameters import (
    BaseExperiment,
    HaltonGenerator,
    HaltonSamplerMixIn,
    LatinHypercubeSamplerMixIn,
    RandomUniform,
    RandomUniformSamplerMixIn,
    StaticExperiment,
    make_parameter_sampler,
)

KEYWORDS = {"nb_params": 2, "nb_sims": 6, "l_bounds": [1], "u_bounds": [3], "seed": 11}


def test_sample_may_be_overridden():
    class LogUniform(RandomUniform):
        def sample(self, nb_samples=1):
            return 10.0 ** super().sample(nb_samples)

    sampler = make_parameter_sampler(LogUniform, **KEYWORDS)
    np.testing.assert_allclose(sampler.parameters, 10.0 ** RandomUniform(**KEYWORDS).parameters)
    np.testing.assert_array_equal(sampler.draw(), sampler.parameters[0])


def test_draw_may_be_overridden_and_the_complete_array_is_there_for_process_drawn():
    class Shifted(HaltonGenerator):
        def draw(self):
            return np.append(super().draw(), 42.0)

        def process_drawn(self, parameters):
            span = np.ptp(self.parameters, axis=0)
            assert self.parameters.shape == (6, 2)
            return ["--span", *span, *parameters.tolist()]

    sampler = make_parameter_sampler(Shifted, **KEYWORDS)
    tokens = sampler.process_drawn(sampler.draw())
    assert tokens[0] == "--span"
    assert tokens[-1] == 42.0


def test_parameters_may_come_from_the_study_s_own_table():
    class Table(StaticExperiment):
        def __init__(self, table, **kwargs):
            super().__init__(**kwargs)
            self.parameters = table

        def sample(self, nb_samples=1):
            raise AssertionError("the table has all of them")

    table = [[1, 2.5], [3, 4.5]]
    sampler = make_parameter_sampler(Table, table=table, nb_params=2, nb_sims=2, seed=0)
    assert [sampler.process_drawn(sampler.draw()) for _ in range(2)] == [[1.0, 2.5], [3.0, 4.5]]


def test_an_adaptive_sampler_may_change_the_rows_that_are_not_drawn_yet():
    class Adaptive(RandomUniformSamplerMixIn, BaseExperiment):
        def __init__(self, **kwargs):
            BaseExperiment.__init__(self, **kwargs)
            RandomUniformSamplerMixIn.__init__(self)

    sampler = make_parameter_sampler(Adaptive, **KEYWORDS)
    sampler.draw()
    sampler.parameters[1:] = 2.0
    assert sampler.draw().tolist() == [2.0, 2.0]


class Several(RandomUniformSamplerMixIn, HaltonSamplerMixIn, LatinHypercubeSamplerMixIn, BaseExperiment):
    def __init__(self, which, **kwargs):
        BaseExperiment.__init__(self, **kwargs)
        if which == "uniform":
            RandomUniformSamplerMixIn.__init__(self)
        elif which == "halton":
            HaltonSamplerMixIn.__init__(self, self.nb_params, self.seed)
        elif which == "lhs":
            LatinHypercubeSamplerMixIn.__init__(self, self.nb_params, self.seed)


def test_a_class_with_several_mix_ins_samples_with_the_one_that_it_initialises():
    halton = make_parameter_sampler(Several, which="halton", **KEYWORDS)
    np.testing.assert_array_equal(halton.parameters, HaltonGenerator(**KEYWORDS).parameters)
    uniform = make_parameter_sampler(Several, which="uniform", **KEYWORDS)
    np.testing.assert_array_equal(uniform.parameters, RandomUniform(**KEYWORDS).parameters)
    assert len(np.unique(make_parameter_sampler(Several, which="lhs", **KEYWORDS).parameters)) == 12


def test_a_class_that_initialises_no_mix_in_is_told_what_to_call():
    sampler = make_parameter_sampler(Several, which="none", **KEYWORDS)
    with pytest.raises(ConfigurationFileError, match=r"RandomUniformSamplerMixIn.__init__\(self\)"):
        sampler.draw()


def test_cooperative_initialisation_reaches_the_experiment():
    class Cooperative(HaltonSamplerMixIn, StaticExperiment):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)

    sampler = make_parameter_sampler(Cooperative, **KEYWORDS)
    np.testing.assert_array_equal(sampler.parameters, HaltonGenerator(**KEYWORDS).parameters)


def test_a_sample_of_another_shape_is_named_with_both():
    class Flat(RandomUniform):
        def sample(self, nb_samples=1):
            return np.zeros(nb_samples)

    with pytest.raises(
        ConfigurationFileError, match=r"Flat.sample\(6\) returned .* \(6,\), expected \(6, 2\)"
    ):
        make_parameter_sampler(Flat, **KEYWORDS).draw()


def test_a_mix_in_without_bounds_says_which_are_missing():
    class NoBounds(RandomUniformSamplerMixIn, BaseExperiment):
        def __init__(self, **kwargs):
            BaseExperiment.__init__(self, **kwargs)
            RandomUniformSamplerMixIn.__init__(self)

    with pytest.raises(ConfigurationFileError, match="NoBounds needs u_bounds"):
        make_parameter_sampler(NoBounds, nb_params=1, nb_sims=1, l_bounds=[0]).draw()


def test_extra_keywords_reach_the_class_and_a_seed_that_it_cannot_take_is_left_out():
    class Old:
        def __init__(self, nb_params, nb_sims, offset):
            self.offset = offset

        def draw(self):
            return [self.offset]

    sampler = make_parameter_sampler(Old, nb_params=1, nb_sims=1, offset=3, seed=0)
    assert sampler.draw() == [3]
    with pytest.raises(TypeError, match="offse"):
        make_parameter_sampler(Old, nb_params=1, nb_sims=1, offse=3)


def test_ints_stay_ints_and_strings_stay_as_they_are():
    whole = RandomUniform(3, 1, [0], [9], dtype=np.int32, seed=1)
    tokens = whole.process_drawn(whole.draw())
    assert {type(token) for token in tokens} == {int}
    assert whole.process_drawn(["'two words'", "x"]) == ["'two words'", "x"]
    mixed = np.array([1, 2.5, "mesh.dat"], dtype=object)
    assert whole.process_drawn(mixed) == [1, 2.5, "mesh.dat"]
    assert {type(token) for token in RandomUniform(2, 1, [0], [1]).process_drawn([0.5, 1])} == {float}
