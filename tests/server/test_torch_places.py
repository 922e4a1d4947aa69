"""Which GPU each rank trains on, or that all train on the CPU."""

import pytest

from melissa.server.deep_learning.torch_places import RankHardware, choose_places

CORES = frozenset(range(8))


def rank(node="n1", *gpus, cores=CORES):
    return RankHardware(node, gpus, cores)


def gpus(*hardware):
    return [place.gpu for place in choose_places(hardware)[0]]


def test_ranks_that_see_the_same_gpus_take_one_each():
    assert gpus(rank("n1", "a", "b"), rank("n1", "a", "b")) == [0, 1]
    assert gpus(rank("n1", "a", "b", "c"), rank("n1", "a", "b", "c")) == [0, 1]


def test_a_gpu_that_is_bound_to_each_rank_is_its_first():
    assert gpus(rank("n1", "a"), rank("n1", "b")) == [0, 0]


def test_it_is_the_ranks_of_a_node_that_count():
    two_nodes = [rank("n1", "a", "b"), rank("n1", "a", "b"), rank("n2", "c", "d"), rank("n2", "c", "d")]
    assert gpus(*two_nodes) == [0, 1, 0, 1]
    # Ranks go round the nodes.
    assert gpus(two_nodes[0], two_nodes[2], two_nodes[1], two_nodes[3]) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "hardware",
    [
        [rank("n1", "a"), rank("n1", "a")],
        [rank("n1"), rank("n1")],
        [rank("n1", "a", "b"), rank("n1", "a", "b"), rank("n2", "c"), rank("n2", "c")],
        [rank("n1", "a"), rank("n2")],
        [rank("n1", "a", "b"), rank("n1", "a")],
    ],
)
def test_with_too_few_gpus_all_ranks_train_on_the_cpu(hardware):
    places, reason = choose_places(hardware)
    assert {place.gpu for place in places} == {None}
    assert "server rank(s) see" in reason


def test_one_rank_takes_the_first_gpu():
    assert gpus(rank("n1", "a", "b")) == [0]
    assert gpus(rank("n1")) == [None]


def test_a_rank_knows_its_number_on_its_node_and_who_shares_its_cores():
    bound = [rank("n1", cores=frozenset({0})), rank("n1", cores=frozenset({1})), rank("n2"), rank("n2")]
    places, _ = choose_places(bound)
    assert [place.local_rank for place in places] == [0, 1, 0, 1]
    assert [place.nb_sharing for place in places] == [1, 1, 2, 2]
    assert not any(place.is_one_node for place in places)
    assert choose_places([rank(), rank()])[0][1].is_one_node
