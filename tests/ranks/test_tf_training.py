"""Data-parallel training with TensorFlow: ranks stay equal, and equal to one rank with the same batches."""

import json

import numpy as np
import pytest
from under_mpi import run

pytest.importorskip("h5py", reason="TensorFlow is not installed")

LONG = 250.0
"""Seconds: TensorFlow alone takes many of them to be imported by several ranks of a loaded machine."""

pytestmark = pytest.mark.timeout(2.5 * LONG)

# For the same reason all that goes well is trained by one program.
PROGRAM = """
from fed_tf import *
connect(comm)
from tf_ways import *

for cls in [*WAYS, BuiltWhenCalled]:
    server = train(cls, batch_size=GLOBAL_BATCH // comm.size)
    say(json.dumps([cls.__name__, server._accounting.nb_samples, weights(server)]))

if comm.size == 1:
    say(weights(train(Graph, batch_size=12)))
else:
    say(weights(train(BuiltDifferently)))
    try:
        train(Diverging)
    except Exception as error:
        say(type(error).__name__, error)
    say(train(Validating, nb_batches_update=2).validated)
    server = train(Checkpointing, checkpoint_interval=5)
    say(state(server))
    # Neither batches nor a watermark: it stops where it starts.
    restored = train(type("Restored", (Restored,), {"nb_batches": (0,)}))
    say(state(restored))
    say(restored.batch_offset)
"""


def trained(folder, nb_ranks, global_batch):
    folder.mkdir()
    result, said = run(folder, nb_ranks, f"GLOBAL_BATCH = {global_batch}\n{PROGRAM}", within=LONG)
    assert result.returncode == 0, result.stdout + result.stderr
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tf")


@pytest.fixture(scope="module")
def two_ranks(folder):
    return trained(folder / "two", 2, 8)


@pytest.fixture(scope="module")
def one_rank(folder):
    return trained(folder / "one", 1, 8)


def ways(lines):
    """Return the models that were trained: way -> (samples, weights)."""
    found = [json.loads(line) for line in lines if line.startswith('["')]
    return {
        name: (nb_samples, [np.array(part) for part in json.loads(weights)])
        for name, nb_samples, weights in found
    }


def assert_equal(first, second, tolerance=0.0):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_ranks_train_the_model_that_one_rank_trains_on_the_same_batches(two_ranks, one_rank):
    first, second, alone = ways(two_ranks[0]), ways(two_ranks[1]), ways(one_rank[0])
    assert len(first) == 11
    for way, (nb_samples, weights) in first.items():
        assert_equal(weights, second[way][1])
        assert nb_samples == second[way][0] == 20
        if way != "BuiltWhenCalled":  # its weights come from another seed
            assert_equal(weights, alone[way][1], tolerance=1e-5)


def test_all_ranks_begin_with_the_weights_of_rank_0(two_ranks, one_rank):
    lines = [ranks[11] for ranks in two_ranks]
    assert lines[0] == lines[1]
    weights = [np.array(part) for part in json.loads(lines[0])]
    assert_equal(weights, ways(one_rank[0])["Eager"][1], tolerance=1e-5)


def test_ranks_whose_weights_differ_are_named_after_the_first_batch(two_ranks):
    for lines in two_ranks:
        assert lines[12].startswith("TrainingError after batch 1 the weights of server rank(s) 1 differ")


def test_rank_0_validates_alone(two_ranks):
    assert [lines[13] for lines in two_ranks] == ["(2, 4)", "()"]


def test_each_rank_goes_on_where_its_checkpoint_was_written(two_ranks):
    for lines in two_ranks:
        assert lines[14] == lines[15]
        assert lines[16] == "5"
    # Moving means are each rank's own, and so the two say different things.
    assert two_ranks[0][14] != two_ranks[1][14]


@pytest.mark.long
def test_three_ranks_train_it_too(folder, one_rank):
    code = """
    from fed_tf import *
    connect(comm)
    from tf_ways import Graph

    say(weights(train(Graph, batch_size=4)))
    """
    place = folder / "three"
    place.mkdir()
    result, lines = run(place, 3, code, within=LONG)
    assert result.returncode == 0, result.stderr
    first, second, third = ([np.array(part) for part in json.loads(line)] for (line,) in lines)
    assert_equal(first, second)
    assert_equal(first, third)
    alone = [np.array(part) for part in json.loads(one_rank[0][-1])]
    assert_equal(first, alone, tolerance=1e-5)


def test_a_server_of_tensorflow_that_cannot_listen_is_an_error_that_names_its_address(tmp_path):
    code = """
    import socket
    from fed_tf import *
    from melissa.server.deep_learning import tf_ranks

    class Comm:
        rank, size = 0, 2
        def allgather(self, value):
            return [value, value if not isinstance(value, str) else "127.0.0.1:9"]

    tf_ranks._hold_port = lambda: socket.create_server(("", 0))
    try:
        connect(Comm())
    except Exception as error:
        say(type(error).__name__, error)
    """
    _, ((told,),) = run(tmp_path, 1, code, within=LONG)
    assert told.startswith(
        "TrainingError TensorFlow cannot connect server rank 0, which is to listen at 127."
    )
    assert "Could not start gRPC server" in told


@pytest.mark.parametrize(
    ("nb_ranks", "dying"),
    [(2, 1), pytest.param(2, 0, marks=pytest.mark.long), pytest.param(3, 2, marks=pytest.mark.long)],
)
def test_the_death_of_a_rank_ends_the_others_within_seconds(tmp_path, nb_ranks, dying):
    code = f"""
    import os, signal
    from fed_tf import *
    connect(comm)
    from tf_ways import Graph

    class Study(Graph):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3 and self.rank == {dying}:
                say(time.time())
                os.kill(os.getpid(), signal.SIGKILL)
            return Graph.training_step(self, batch, batch_idx)

    try:
        train(Study)
    except Exception as error:
        say(time.time(), type(error).__name__, error)
    os._exit(3)
    """
    # Without recovery mpiexec itself would end the others.
    result, said = run(tmp_path, nb_ranks, code, options=["--enable-recovery"], within=LONG)
    assert result.returncode != 0
    time_of_death = float(said[dying][0])
    for other in set(range(nb_ranks)) - {dying}:
        seconds, words = said[other][0].split(maxsplit=1)
        assert float(seconds) - time_of_death < 30.0
        assert words.startswith(f"TrainingError server rank {other} has lost the connection to another")
