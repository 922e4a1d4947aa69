"""Rank 0's view of the simulations in a checkpoint, and what a restarted server makes of it."""

import itertools
import json

import numpy as np

from melissa.server.checkpoint.study_state import StudyState, advance_sampler
from melissa.server.control import Draw
from melissa.server.simulation import Simulation, SimulationStatus


def simulation(number, status, **changes):
    return Simulation(number, status=status, attempt=2, words=[str(number)], **changes)


def restored(simulations, finished=frozenset()):
    draws = [(known.id, known.draw, [known.id + 0.5]) for known in simulations]
    state = StudyState.of_simulations(simulations, draws, 3, 10)
    state = StudyState.from_dict(json.loads(json.dumps(state.to_dict())))
    assert (state.nb_resubmitted, state.expected_steps) == (3, 10)
    return state.restored_simulations(set(finished))


def test_what_is_finished_on_every_rank_is_final_and_all_else_runs_again():
    simulations = [
        simulation(0, SimulationStatus.FINISHED),
        simulation(1, SimulationStatus.FINISHED),
        simulation(2, SimulationStatus.RUNNING, steps_complete=4, failures=1),
    ]
    again = restored(simulations, finished={0})
    assert [known.is_final for known in again] == [True, False, False]
    assert [known.status.value for known in again] == ["finished", "planned", "planned"]
    assert [known.parameters for known in again] == [[0.5], [1.5], [2.5]]
    assert (again[2].attempt, again[2].failures, again[2].words) == (2, 1, ["2"])


def test_a_simulation_that_was_given_up_stays_so_and_one_that_a_stop_ended_runs_again():
    simulations = [
        simulation(0, SimulationStatus.DROPPED, given_up=True),
        simulation(1, SimulationStatus.DROPPED),
    ]
    assert [known.status.value for known in restored(simulations)] == ["dropped", "planned"]


def test_parameters_of_any_kind_come_back_as_plain_values():
    drawn = [np.float64(0.1), np.int32(3), "--name", np.array([1.0, 2.0]), float("inf")]
    state = StudyState.of_simulations([], [(0, 0, drawn)], 0, None)
    ((_, _, back),) = StudyState.from_dict(json.loads(json.dumps(state.to_dict()))).draws
    assert back == [0.1, 3, "--name", [1.0, 2.0], float("inf")]


def test_a_sampler_is_advanced_by_as_many_draws(log):
    numbers = itertools.count()
    state = StudyState(draws=[(0, 0, [0]), (1, 0, [1]), (0, 1, [2])])
    advance_sampler(lambda: Draw([next(numbers)], []), state.draws)
    assert next(numbers) == 3
    assert log.records == []


def test_a_sampler_that_draws_otherwise_is_warned_of_once_and_advanced(log):
    numbers = itertools.count(7)
    state = StudyState(draws=[(0, 0, [7]), (1, 0, [1]), (2, 0, [2])])
    advance_sampler(lambda: Draw([next(numbers)], []), state.draws)
    assert next(numbers) == 10
    (record,) = log.records
    assert "simulation 1 (draw 0) was given the parameters [1]" in record.message
    assert "draws [8]" in record.message
