"""Data-parallel training with torch: ranks stay equal, and equal to one rank with the same batches."""

import json
import subprocess
import sys

import numpy as np
import pytest
from under_mpi import HELPERS, SOON, environment, mpiexec

STUDIES = {
    1: ("alone", "reference"),
    2: (
        *("even", "unprepared", "wrapped", "normalised", "uneven_first", "uneven_all", "uneven_backwards"),
        *("uneven_meeting", "unjoinable", "drifting", "restarted", "old_checkpoint"),
    ),
    3: ("even", "uneven_all", "uneven_backwards"),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Run the studies that tests look at, once for each number of ranks; (ranks, name) -> results."""
    known = {}

    def results(nb_ranks, name, **more):
        key = (nb_ranks, *more.values())
        if key not in known:
            folder = tmp_path_factory.mktemp(f"ranks{nb_ranks}")
            command = [sys.executable, str(HELPERS / "torch_studies.py"), *STUDIES[nb_ranks]]
            result = subprocess.run(
                mpiexec(nb_ranks, *command),
                env=environment(nb_ranks, **more),
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=1.5 * SOON,
                check=False,
            )
            assert result.returncode == 0, result.stdout + result.stderr
            known[key] = [json.loads((folder / f"told.{rank}").read_text()) for rank in range(nb_ranks)]
        return [told[name] for told in known[key]]

    return results


def arrays(text):
    return {name: np.array(value) for name, value in json.loads(text).items()}


def assert_same(first, second, tolerance=0.0):
    first, second = arrays(first), arrays(second)
    assert list(first) == list(second)
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=tolerance, atol=tolerance, err_msg=name)


def assert_ranks_equal(results):
    for result in results[1:]:
        assert_same(results[0]["weights"], result["weights"])


@pytest.mark.parametrize("nb_ranks", [2, pytest.param(3, marks=pytest.mark.long)])
def test_ranks_train_the_model_that_one_rank_trains_on_the_same_batches(told, nb_ranks):
    results = told(nb_ranks, "even")
    assert [result["nb_samples"] for result in results] == [20] * nb_ranks
    assert_ranks_equal(results)
    [alone] = told(1, "alone", NB_BATCHES_IN_ONE=str(nb_ranks))
    assert alone["nb_samples"] == 20 * nb_ranks
    assert alone["batches"] == results[0]["batches"] == 5
    assert_same(results[0]["weights"], alone["weights"], tolerance=1e-5)


def test_the_model_is_wrapped_once_on_several_ranks_and_not_on_one(told):
    assert {result["in_hooks"] for result in told(2, "even")} == {"DistributedDataParallel"}
    assert told(1, "alone", NB_BATCHES_IN_ONE="2")[0]["wrapper"] == "Sequential"


def test_the_process_group_is_left_in_the_end(told):
    assert not any(result["group_left"] for result in told(2, "even"))


def test_all_ranks_begin_with_the_weights_of_rank_0(told):
    assert_ranks_equal(told(2, "unprepared"))


def test_a_model_that_the_user_has_wrapped_stays_as_it_is(told):
    results = told(2, "wrapped")
    assert all(result["is_own"] for result in results)
    assert_ranks_equal(results)
    assert_same(results[0]["weights"], told(2, "even")[0]["weights"])


def test_ranks_that_drift_apart_are_warned_of(told):
    assert [len(result["warnings"]) for result in told(2, "drifting")] == [1, 0]


def test_rank_0_validates_a_model_with_buffers_alone(told):
    results = told(2, "normalised")
    # Twice in training, once in on_train_end.
    assert [result["seen"] for result in results] == [["Sequential"] * 3, []]
    assert {result["wrapper"] for result in results} == {"DistributedDataParallel"}
    assert [result["batches"] for result in results] == [4, 4]


def test_all_ranks_stop_when_one_is_empty(told):
    results = told(2, "uneven_first")
    # Rank 1 has seven batches and one more of a single sample.
    assert [result["nb_samples"] for result in results] == [32, 29]
    assert_ranks_equal(results)


def test_every_rank_trains_to_its_last_sample_if_asked_to(told):
    results = told(2, "uneven_all")
    assert [result["nb_samples"] for result in results] == [40, 29]
    assert_ranks_equal(results)
    [reference] = told(1, "reference", NB_BATCHES_IN_ONE="2")
    assert_same(results[0]["weights"], reference["weights"], tolerance=1e-5)


def test_ranks_that_meet_for_checkpoints_in_the_drain_train_the_same(told):
    results = told(2, "uneven_meeting")
    assert [result["nb_samples"] for result in results] == [40, 29]
    assert [result["batches"] for result in results] == [10, 10], "rank 1 is after batch 10, too"
    assert [result["saved_batch"] for result in results] == [10, 10]
    assert_ranks_equal(results)
    assert_same(results[0]["weights"], told(2, "uneven_all")[0]["weights"])


def test_a_rank_may_have_no_sample_at_all(told):
    results = told(3, "uneven_all")
    assert [result["nb_samples"] for result in results] == [40, 29, 0]
    assert_ranks_equal(results)


@pytest.mark.parametrize("nb_ranks", [2, pytest.param(3, marks=pytest.mark.long)])
def test_the_last_checkpoint_has_weights_and_optimizer_of_the_rank_that_trained_longest(told, nb_ranks):
    results = told(nb_ranks, "uneven_backwards")
    # Rank 0, which writes, has trained three batches; rank 1 six and a short one.
    assert results[0]["nb_samples"] == 3 * 4
    assert_ranks_equal(results)
    for result in results:
        assert (result["saved_batch"], result["steps"], result["same"]) == (7, [7], True)


def test_a_model_that_ranks_cannot_join_is_refused(told):
    for result in told(2, "unjoinable"):
        assert "drain" in result["error"]
        assert "the model is a str" in result["error"]


def test_a_restart_goes_on_with_weights_optimizer_and_random_numbers(told):
    results = told(2, "restarted")
    assert_ranks_equal(results)
    for result in results:
        assert_same(result["weights"], result["uninterrupted"])
        before, after = result["numbers"]
        assert len(after) == 3
        assert before == after


def test_the_checkpoint_function_of_2023_writes_on_rank_0(told):
    assert [result["written"] for result in told(2, "old_checkpoint")] == [["old0/model.pt"], []]
