"""From the buffer to the batch: both lanes, their waits, their checks."""

import threading
import time
from collections import namedtuple

import numpy as np
import pytest
import torch

from melissa.exceptions import ReceptionError
from melissa.server.deep_learning.collate import as_tensors, collate, collate_arrays
from melissa.server.deep_learning.frameworks import FrameworkType
from melissa.server.deep_learning.lanes import FastLane, SampleChecks, ViewLane
from melissa.server.deep_learning.reservoir import FIFO, BatchReservoir
from melissa.server.deep_learning.sample_source import PolledWait, SampleSource
from melissa.server.ending import StudyEnding
from melissa.server.simulation import Simulation


@pytest.fixture
def filled(make_sample):
    def fill(nb_samples, buffer=None, close=True):
        buffer = buffer or FIFO(100)
        for number in range(nb_samples):
            buffer.put(make_sample(number, number + 1))
        if close:
            buffer.native.close()
        return buffer

    return fill


def view_lane(buffer, batch_size=4, drop_last=False, ending=None, admit=None, transform=lambda data: data):
    wait = PolledWait(ending or StudyEnding())
    source = SampleSource(buffer, batch_size, wait, admit)
    return ViewLane(source, batch_size, drop_last, transform, lambda samples: samples)


def fast_lane(buffer, batch_size=4, drop_last=False, ending=None):
    return FastLane(buffer, batch_size, drop_last, lambda batch: batch, PolledWait(ending or StudyEnding()))


def deliveries(lane):
    found = []
    while (delivery := lane.next()) is not None:
        found.append(delivery)
    lane.stop()
    return found


@pytest.mark.parametrize("make_lane", [view_lane, fast_lane])
def test_a_short_last_batch_is_delivered_unless_told_otherwise(filled, make_lane):
    assert [len(d.samples) for d in deliveries(make_lane(filled(10)))] == [4, 4, 2]
    assert [len(d.samples) for d in deliveries(make_lane(filled(10), drop_last=True))] == [4, 4]
    assert deliveries(make_lane(filled(0))) == []


def test_the_view_lane_hands_out_samples_in_order_with_their_parameters(filled):
    (delivery,) = deliveries(view_lane(filled(3)))
    assert [data.simulation_id for data in delivery.batch] == [0, 1, 2]
    assert [data.time_step for data in delivery.batch] == [1, 2, 3]
    assert delivery.batch[2].parameters == [0.25, 0.5]
    np.testing.assert_array_equal(delivery.batch[2].data["u"], np.full(4, 2003.0))


def test_the_fast_lanes_batches_are_arrays_of_inputs_and_fields(filled):
    (delivery,) = deliveries(fast_lane(filled(3)))
    batch = delivery.batch
    np.testing.assert_array_equal(batch.inputs, [[0.25, 0.5, 1], [0.25, 0.5, 2], [0.25, 0.5, 3]])
    np.testing.assert_array_equal(batch.fields["u"][:, 0], [1.0, 1002.0, 2003.0])
    np.testing.assert_array_equal(batch.simulation_ids, [0, 1, 2])


def test_batches_of_a_batch_reservoir_hold_no_sample_twice(filled):
    buffer = filled(20, BatchReservoir(20, 5, 5), close=False)
    lane = view_lane(buffer, batch_size=5)
    for _ in range(30):
        assert len({data.simulation_id for data in lane.next().batch}) == 5


@pytest.mark.parametrize("make_lane", [view_lane, fast_lane])
def test_a_wait_for_data_ends_with_the_study(filled, make_lane):
    ending = StudyEnding()
    lane = make_lane(filled(0, close=False), ending=ending)
    threading.Timer(0.1, ending.stop, args=("enough",)).start()
    start = time.monotonic()
    assert lane.next() is None
    assert time.monotonic() - start < 30.0
    lane.stop()


@pytest.mark.parametrize("make_lane", [view_lane, fast_lane])
def test_a_wait_for_data_raises_what_failed_elsewhere(filled, make_lane):
    ending = StudyEnding()
    lane = make_lane(filled(0, close=False), ending=ending)
    threading.Timer(0.1, ending.fail, args=(ValueError("of the control thread"),)).start()
    with pytest.raises(ValueError, match="of the control thread"):
        lane.next()
    lane.stop()


@pytest.mark.parametrize("make_lane", [view_lane, fast_lane])
def test_a_failed_reception_reaches_training(filled, make_lane):
    buffer = filled(1, close=False)
    lane = make_lane(buffer)
    threading.Timer(0.1, buffer.native.fail, args=("the slab does not fit",)).start()
    with pytest.raises(ReceptionError, match="the slab does not fit"):
        lane.next()
    lane.stop()


def test_only_waits_after_the_first_data_count(filled, make_sample):
    buffer = filled(0, close=False)
    lane = view_lane(buffer, batch_size=1)

    def put_late(number):
        time.sleep(0.6)
        buffer.put(make_sample(number))

    for number in range(2):
        thread = threading.Thread(target=put_late, args=(number,))
        thread.start()
        lane.next()
        thread.join()
        assert (lane.wait_seconds > 0.1) == (number == 1)


def test_a_refused_sample_is_passed_over_and_each_is_looked_at_once(filled):
    looked, parts = [], []

    def is_valid(data):
        looked.append(data.simulation_id)
        return data.simulation_id != 1

    checks = SampleChecks(is_valid, lambda simulation, part: parts.append((simulation, part)), Simulation)
    buffer = filled(4, BatchReservoir(10, 1, 1), close=False)
    lane = view_lane(buffer, admit=checks.admit)
    seen = {data.simulation_id for _ in range(20) for data in lane.next().batch}
    assert seen == {0, 2, 3}
    assert sorted(looked) == [0, 1, 2, 3]
    assert checks.nb_refused == 1
    assert {(s.simulation_id, p.simulation_id, p.field, p.data_size) for s, p in parts} == {
        (number, number, "u", 4) for number in range(4)
    }


def test_a_check_that_returns_nothing_refuses_nothing(filled):
    checks = SampleChecks(lambda data: None, None, Simulation)
    assert [len(d.batch) for d in deliveries(view_lane(filled(4), admit=checks.admit))] == [4]


# Putting samples together.


def test_arrays_are_stacked_and_scalars_become_lists_in_the_order_of_what_is_returned():
    samples = [(np.full(3, i), i, np.float32(i), np.full((2, 2), i)) for i in range(5)]
    batch = collate_arrays(samples)
    assert type(batch) is tuple
    assert batch[0].shape == (5, 3)
    assert batch[1] == [0, 1, 2, 3, 4]
    assert batch[2] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert batch[3].shape == (5, 2, 2)


def test_samples_that_are_dictionaries_or_single_arrays_keep_their_form():
    assert collate_arrays([{"x": np.zeros(2), "t": 1}] * 3)["x"].shape == (3, 2)
    assert collate_arrays([np.zeros(2)] * 3).shape == (3, 2)
    assert collate_arrays([1.5, 2.5]) == [1.5, 2.5]


def test_samples_for_torch_become_tensors():
    inputs, values = collate([(np.zeros(2, np.float32), 1.0)] * 3, FrameworkType.TORCH)
    assert inputs.shape == (3, 2)
    assert inputs.dtype == torch.float32
    assert values.shape == (3,)


def test_arrays_become_tensors_wherever_they_are():
    pair = namedtuple("pair", "x y")
    batch = as_tensors((np.zeros(2), [np.ones(3), "text"], {"a": np.arange(4)}, pair(np.zeros(1), 5)))
    assert isinstance(batch[0], torch.Tensor)
    assert isinstance(batch[1][0], torch.Tensor)
    assert batch[1][1] == "text"
    assert isinstance(batch[2]["a"], torch.Tensor)
    assert isinstance(batch[3].x, torch.Tensor)
    assert batch[3].y == 5
