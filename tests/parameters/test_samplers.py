"""The designs: within bounds, of their dtype, the same for the same seed, and spread as they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melissa.exceptions import ConfigurationFileError
from melissa.server.parameters import (
    HaltonGenerator,
    LHSGenerator,
    ParameterSamplerType,
    RandomUniform,
    make_parameter_sampler,
)

KINDS = list(ParameterSamplerType)


@st.composite
def designs(draw):
    """Return the keywords of a sampler: floating-point or integer, a bound per parameter or one for all."""
    dtype = draw(st.sampled_from([np.float64, np.float32, np.int64, np.int32, np.uint8]))
    nb_params = draw(st.integers(1, 6))
    length = draw(st.sampled_from([1, nb_params]))
    if np.issubdtype(dtype, np.integer):
        bound = st.integers(0, 200)
    else:
        bound = st.floats(-1e6, 1e6, allow_nan=False)
    pairs = [sorted(draw(st.tuples(bound, bound))) for _ in range(length)]
    return {
        "nb_params": nb_params,
        "nb_sims": draw(st.integers(1, 40)),
        "l_bounds": [low for low, _ in pairs],
        "u_bounds": [high for _, high in pairs],
        "dtype": dtype,
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


@given(st.sampled_from(KINDS), designs())
@settings(deadline=None, max_examples=60)
def test_parameters_are_within_their_bounds_and_of_their_dtype(kind, design):
    sampler = make_parameter_sampler(kind, **design)
    nb_sims, nb_params, dtype = design["nb_sims"], design["nb_params"], np.dtype(design["dtype"])
    assert sampler.parameters.shape == (nb_sims, nb_params)
    rows = [sampler.draw() for _ in range(nb_sims + 3)]
    low = np.broadcast_to(design["l_bounds"], nb_params).astype(dtype)
    high = np.broadcast_to(design["u_bounds"], nb_params).astype(dtype)
    for row in rows:
        assert row.shape == (nb_params,)
        assert row.dtype == dtype
        assert (row >= low).all()
        assert (row <= high).all()
        if dtype.kind in "iu":
            assert ((row < high) | (low == high)).all()


@given(st.sampled_from(KINDS), designs())
@settings(deadline=None, max_examples=40)
def test_the_same_seed_gives_the_same_parameters_before_and_after_the_study_s_own(kind, design):
    first, second = make_parameter_sampler(kind, **design), make_parameter_sampler(kind, **design)
    for _ in range(design["nb_sims"] + 3):
        np.testing.assert_array_equal(first.draw(), second.draw())


@given(st.sampled_from(KINDS), designs())
@settings(deadline=None, max_examples=40)
def test_draws_are_the_rows_of_the_complete_array_in_their_order(kind, design):
    sampler = make_parameter_sampler(kind, **design)
    complete = sampler.parameters.copy()
    drawn = [sampler.draw() for _ in range(design["nb_sims"])]
    np.testing.assert_array_equal(np.array(drawn), complete)
    sampler.draw()
    np.testing.assert_array_equal(sampler.parameters, complete)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_beyond_the_study_s_simulations_are_fresh(kind):
    sampler = make_parameter_sampler(kind, nb_params=3, nb_sims=5, l_bounds=[0], u_bounds=[1], seed=7)
    drawn = [tuple(sampler.draw()) for _ in range(50)]
    assert len(set(drawn)) == 50


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_gives_other_parameters(kind):
    keywords = {"nb_params": 2, "nb_sims": 4, "l_bounds": [0], "u_bounds": [1]}
    first = make_parameter_sampler(kind, **keywords, seed=1).parameters
    assert not np.array_equal(first, make_parameter_sampler(kind, **keywords, seed=2).parameters)
    unseeded = [make_parameter_sampler(kind, **keywords).parameters for _ in range(2)]
    assert not np.array_equal(*unseeded)


@given(st.integers(1, 5), st.integers(1, 60), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_a_latin_hypercube_has_one_point_in_each_stratum(nb_params, nb_sims, seed):
    sampler = LHSGenerator(nb_params, nb_sims, [2.0], [4.0], seed=seed)
    strata = np.floor((sampler.parameters - 2.0) / 2.0 * nb_sims)
    for column in strata.T:
        assert sorted(column) == list(range(nb_sims))


def test_a_halton_sequence_is_more_even_than_chance():
    def discrepancy(sampler) -> float:
        from scipy.stats import qmc

        return float(qmc.discrepancy(sampler.parameters))

    for seed in range(5):
        even = HaltonGenerator(3, 200, [0], [1], seed=seed)
        assert discrepancy(even) < 0.5 * discrepancy(RandomUniform(3, 200, [0], [1], seed=seed))


def test_uniform_parameters_fill_their_bounds():
    values = RandomUniform(2, 4000, [0, -10], [1, 10], seed=3).parameters
    unit = (values - [0, -10]) / [1, 20]
    np.testing.assert_allclose(unit.mean(axis=0), 0.5, atol=0.02)
    np.testing.assert_allclose(unit.min(axis=0), 0.0, atol=0.005)
    np.testing.assert_allclose(unit.max(axis=0), 1.0, atol=0.005)


def test_every_whole_number_of_a_range_is_drawn_equally_often():
    values = RandomUniform(1, 6000, [3], [6], dtype=np.int32, seed=5).parameters
    numbers, counts = np.unique(values, return_counts=True)
    assert numbers.tolist() == [3, 4, 5]
    assert counts.min() > 1800


def test_equal_bounds_name_a_constant():
    for kind in KINDS:
        sampler = make_parameter_sampler(
            kind, nb_params=2, nb_sims=3, l_bounds=[0.1, 5], u_bounds=[0.1, 6], seed=1
        )
        assert (sampler.parameters[:, 0] == 0.1).all()


def test_a_study_without_parameters_has_empty_rows():
    for kind in KINDS:
        sampler = make_parameter_sampler(kind, nb_params=0, nb_sims=3, l_bounds=[0], u_bounds=[1], seed=1)
        assert sampler.parameters.shape == (3, 0)
        assert sampler.process_drawn(sampler.draw()) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"l_bounds": [1, 2]}, r"l_bounds: an array of shape \(2,\) given, expected 3 values"),
        ({"u_bounds": [[1, 2, 3]]}, r"u_bounds: an array of shape \(1, 3\)"),
        ({"l_bounds": [0, 5, 0]}, r"parameter 1 has l_bounds 5.0 above u_bounds 1.0"),
        ({"l_bounds": ["cold"]}, r"l_bounds: \['cold'\] given, expected a list of numbers"),
        ({"u_bounds": [np.nan]}, r"u_bounds: .*nan.* expected finite numbers"),
        ({"dtype": int, "u_bounds": [1.5]}, r"expected whole numbers in its range"),
        ({"dtype": np.uint8, "u_bounds": [300]}, r"dtype is uint8: expected whole numbers in its range"),
        ({"dtype": str}, r"dtype: <U0 given"),
        ({"nb_sims": 0}, r"nb_sims: 0 given, expected a whole number, at least 1"),
        ({"nb_params": 2.5}, r"nb_params: 2.5 given"),
        ({"lower_bounds": [0]}, r"has no keyword 'lower_bounds'. Is 'l_bounds' meant"),
        ({"scramble": True}, r"has no keyword 'scramble'. It has nb_params"),
    ],
)
def test_wrong_arguments_are_named(changes, told):
    keywords = {"nb_params": 3, "nb_sims": 4, "l_bounds": [0], "u_bounds": [1]} | changes
    with pytest.raises(ConfigurationFileError, match=told):
        make_parameter_sampler(ParameterSamplerType.HALTON, **keywords)
    assert issubclass(ConfigurationFileError, ValueError)


def test_missing_bounds_and_what_is_no_sampler_are_named():
    with pytest.raises(ConfigurationFileError, match="needs l_bounds and u_bounds, not given"):
        make_parameter_sampler(ParameterSamplerType.LHS, nb_params=1, nb_sims=1)
    with pytest.raises(ConfigurationFileError, match=r"'halton' given, expected a class or one of .*HALTON"):
        make_parameter_sampler("halton", nb_params=1, nb_sims=1)


def test_the_numbers_of_the_kinds_are_those_of_existing_studies():
    assert [(kind.name, kind.value) for kind in ParameterSamplerType] == [
        ("RANDOM_UNIFORM", 0),
        ("HALTON", 1),
        ("LHS", 2),
    ]
