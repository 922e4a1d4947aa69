"""Data-parallel training with torch: ranks stay equal, and equal to one rank with the same batches."""

import json

import numpy as np
import pytest
from under_mpi import run

PROGRAM = """
from fed_torch import *

class Study(Fed):
    pass

server = train(Study{options})
say(weights(server))
say(server._accounting.nb_samples)
"""


def arrays(text):
    return {name: np.array(value) for name, value in json.loads(text).items()}


def assert_equal(first, second, tolerance=0.0):
    first, second = arrays(first), arrays(second)
    assert list(first) == list(second)
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=tolerance, atol=tolerance)


def succeed(folder, nb_ranks, code, **more):
    folder.mkdir(exist_ok=True)
    result, said = run(folder, nb_ranks, code, **more)
    assert result.returncode == 0, result.stdout + result.stderr
    return said


@pytest.mark.parametrize("nb_ranks", [2, 3])
def test_ranks_train_the_model_that_one_rank_trains_on_the_same_batches(tmp_path, nb_ranks):
    said = succeed(tmp_path / "ranks", nb_ranks, PROGRAM.format(options=""))
    assert [int(lines[1]) for lines in said] == [20] * nb_ranks
    for lines in said[1:]:
        assert_equal(said[0][0], lines[0])
    [alone] = succeed(tmp_path / "alone", 1, PROGRAM.format(options=f", batch_size={4 * nb_ranks}"))
    assert int(alone[1]) == 20 * nb_ranks
    assert_equal(said[0][0], alone[0], tolerance=1e-5)
