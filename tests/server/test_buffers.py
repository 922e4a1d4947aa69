"""The training buffers by their reference names: their laws (design §5), and what studies do with them."""

import threading
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from melissa.exceptions import BufferClosed, EndOfData, SchemaError, UnsupportedConfiguration, WaitTimeout
from melissa.server.deep_learning.reservoir import (
    FIFO,
    FIRO,
    BatchReservoir,
    BufferType,
    Reservoir,
    default_assembly_slots,
    make_buffer,
)
from melissa.server.simulation import SimulationData


def sample(number, size=4):
    return SimulationData(number, number % 7, {"u": np.full(size, float(number), np.float32)}, [0.5 * number])


def number_of(data):
    """Which sample it is, checked to be whole."""
    (number,) = set(data.data["u"].tolist())
    assert data.simulation_id == number
    assert data.time_step == number % 7
    assert data.parameters == [0.5 * number]
    return int(number)


def drain(buffer):
    buffer.native.close()
    delivered = []
    while True:
        try:
            delivered.append(number_of(buffer.get(timeout=60)))
        except EndOfData:
            return delivered


# Schedules: True puts the next sample, False gets one.
schedules = st.lists(st.booleans(), max_size=120)
capacities = st.integers(2, 12)


def play(buffer, schedule, check):
    """Run a schedule; what would wait is left out. Returns (put, delivered before the end, after)."""
    put, delivered = 0, []
    for is_put in schedule:
        try:
            if is_put:
                buffer.put(sample(put), timeout=0)
                put += 1
            else:
                delivered.append(number_of(buffer.get(timeout=0)))
        except WaitTimeout:
            pass
        assert len(buffer) <= buffer.maxsize
        check(is_put, put, delivered)
    return put, delivered, drain(buffer)


@given(schedules, capacities)
def test_fifo_delivers_each_sample_once_in_order(schedule, capacity):
    put, before, after = play(FIFO(capacity), schedule, lambda *_: None)
    assert before + after == list(range(put))


@given(schedules, capacities, st.data())
def test_firo_delivers_each_sample_once_and_keeps_its_watermark(schedule, capacity, data):
    watermark = data.draw(st.integers(0, capacity - 1))
    buffer = FIRO(capacity, watermark)

    def check(is_put, put, delivered):
        assert is_put or not delivered or len(buffer) >= min(watermark, put - len(delivered))

    put, before, after = play(buffer, schedule, check)
    assert sorted(before + after) == list(range(put))


@given(st.integers(0, 12), st.integers(2, 4))
def test_firo_with_pseudo_epochs_makes_so_many_passes_over_all(nb_samples, pseudo_epochs):
    buffer = FIRO(12, 0, pseudo_epochs)
    for number in range(nb_samples):
        buffer.put(sample(number))
        with pytest.raises(WaitTimeout):
            buffer.get(timeout=0)
    delivered = drain(buffer)
    assert len(delivered) == nb_samples * pseudo_epochs
    for start in range(0, len(delivered), nb_samples or 1):
        assert sorted(delivered[start : start + nb_samples]) == list(range(nb_samples))


@pytest.mark.parametrize("kind", [Reservoir, BatchReservoir])
@given(schedule=schedules, capacity=capacities, data=st.data())
@settings(deadline=None)
def test_a_reservoir_evicts_nothing_unseen_and_drains_what_is_left_once(kind, schedule, capacity, data):
    watermark = data.draw(st.integers(0, capacity))
    buffer = Reservoir(capacity, watermark) if kind is Reservoir else BatchReservoir(capacity, watermark, 1)
    put, before, after = play(buffer, schedule, lambda *_: None)
    assert set(before) | set(after) == set(range(put))
    assert len(after) == min(put, capacity) == len(set(after))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 5))
@settings(deadline=None)
def test_a_batch_reservoirs_batches_hold_no_sample_twice(puts, batch_size):
    buffer = BatchReservoir(8, 2, batch_size)
    number = 0
    for nb_puts in puts:
        for _ in range(nb_puts):
            try:
                buffer.put(sample(number), timeout=0)
                number += 1
            except WaitTimeout:
                break
        try:
            batch = buffer.native.get_batch(batch_size, 0)
        except WaitTimeout:
            assert len(buffer) < max(2, batch_size)
            continue
        keys = [(s.simulation_id, s.time_step) for s in batch]
        assert len(batch) == batch_size == len(set(keys))


@pytest.mark.parametrize(
    "make", [lambda: FIRO(20, 0), lambda: Reservoir(20, 20), lambda: BatchReservoir(20, 20, 1)]
)
def test_a_draw_is_uniform_over_the_population(make):
    counts = Counter()
    rounds = 150 if isinstance(make(), FIRO) else 1
    for seed in range(rounds):
        buffer = make()
        buffer.join_study(buffer.registry, seed)
        for number in range(20):
            buffer.put(sample(number))
        # The first draw of each of many FIROs; all draws of one reservoir, from which nothing is removed.
        for _ in range(1 if rounds > 1 else 3000):
            counts[number_of(buffer.get())] += 1
    assert stats.chisquare([counts[number] for number in range(20)]).pvalue > 1e-4


def test_a_reservoir_delivers_each_sample_as_often_as_consumption_exceeds_production():
    buffer = Reservoir(50, 10)
    delivered = Counter()
    nb_samples, ratio = 2000, 4
    for number in range(nb_samples):
        buffer.put(sample(number), timeout=0)
        if len(buffer) >= 50:
            for _ in range(ratio):
                delivered[number_of(buffer.get())] += 1
    steady = [delivered[number] for number in range(200, nb_samples - 400)]
    assert np.mean(steady) == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize("kind", ["FIRO", "Reservoir", "BatchReservoir"])
def test_the_same_seed_and_order_of_events_give_the_same_draws(kind):
    def run(seed):
        buffer = make_buffer(16, BufferType[kind], 4, batch_size=1, seed=seed)
        events = np.random.default_rng(5).random(300) < 0.5
        put, delivered, drained = play(buffer, events.tolist(), lambda *_: None)
        return put, delivered, drained

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_put_and_get_beside_each_other_deliver_everything_whole():
    buffer = FIRO(16, 4)

    def produce():
        for number in range(3000):
            buffer.put(sample(number, size=64))
        buffer.native.close()

    thread = threading.Thread(target=produce)
    thread.start()
    delivered = []
    while True:
        try:
            delivered.append(number_of(buffer.get(timeout=60)))
        except EndOfData:
            break
    thread.join()
    assert sorted(delivered) == list(range(3000))


# What study code does.


def test_a_buffer_binds_at_its_first_sample(make_sample):
    buffer = Reservoir(4, 1)
    assert not buffer.native.bound
    buffer.put(make_sample(0))
    assert buffer.native.fields == [("u", 4, "float32")]
    with pytest.raises(SchemaError):
        buffer.put(make_sample(1, size=5))


def test_only_simulation_data_enter():
    with pytest.raises(TypeError, match="SimulationData, not dict"):
        FIFO(2).put({"u": 1})


def test_parameters_come_back_as_they_were_put():
    buffer = FIFO(4)
    buffer.put(SimulationData(0, 0, {"u": np.zeros(2)}, [1, 2.5]))
    buffer.put(SimulationData(1, 0, {"u": np.zeros(2)}, ["left", 0.5]))
    assert buffer.get().parameters == [1, 2.5]
    assert buffer.get().parameters == ["left", 0.5]


def test_nothing_enters_inside_the_mutex_and_getting_goes_on(make_sample):
    buffer = Reservoir(4, 1)
    buffer.put(make_sample(0))
    with buffer.mutex, buffer.mutex:
        with pytest.raises(WaitTimeout):
            buffer.put(make_sample(1), timeout=0.01)
        buffer.get()
        assert len(buffer.queue) == 1
    buffer.put(make_sample(1), timeout=60)
    assert len(buffer.queue) == 2


def test_a_put_that_waits_for_the_mutex_goes_on_when_it_is_left(make_sample):
    buffer = FIFO(4)
    buffer.put(make_sample(0))
    with buffer.mutex:
        thread = threading.Thread(target=buffer.put, args=(make_sample(1),))
        thread.start()
        time.sleep(0.05)
        assert len(buffer) == 1
    thread.join(timeout=60)
    assert len(buffer) == 2


def test_the_queue_shows_samples_without_delivering_them(make_sample):
    buffer = Reservoir(8, 1)
    for number in range(5):
        buffer.put(make_sample(number))
    assert len(buffer.queue) == 5
    assert sorted(item.data.simulation_id for item in buffer.queue) == [0, 1, 2, 3, 4]
    assert {buffer.queue[i].data.simulation_id for i in range(-5, 0)} == {0, 1, 2, 3, 4}
    assert [item.data.simulation_id for item in buffer.queue[:2]] == [
        buffer.queue[0].data.simulation_id,
        buffer.queue[1].data.simulation_id,
    ]
    assert buffer.seen_ctr == Counter({0: 5})
    with pytest.raises(IndexError, match="no sample at position 5"):
        buffer.queue[5]


def test_seen_ctr_and_put_get_metric_count(make_sample):
    buffer = Reservoir(8, 1)
    for number in range(3):
        buffer.put(make_sample(number))
    assert buffer.put_get_metric.val == 3
    for _ in range(5):
        buffer.get()
    assert buffer.put_get_metric.val == -2
    assert sum(times * samples for times, samples in buffer.seen_ctr.items()) == 5


def test_a_closed_buffer_takes_nothing(make_sample):
    buffer = FIFO(2)
    buffer.put(make_sample(0))
    buffer.native.close()
    with pytest.raises(BufferClosed):
        buffer.put(make_sample(1))


def test_a_buffer_takes_the_studys_seed_unless_it_has_one_or_holds_samples(make_sample):
    def draws(buffer):
        buffer.join_study(buffer.registry, 42)
        for number in range(buffer.native.population, 8):
            buffer.put(make_sample(number))
        return [buffer.get().simulation_id for _ in range(20)]

    assert draws(Reservoir(8, 8)) == draws(Reservoir(8, 8, seed=42))
    assert draws(Reservoir(8, 8, seed=7)) != draws(Reservoir(8, 8))
    used = Reservoir(8, 8)
    used.put(make_sample(0))
    assert draws(used) == draws(Reservoir(8, 8, seed=0))


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        ({"buffer_t": BufferType.FIRO}, "per_server_watermark"),
        ({"buffer_t": BufferType.Reservoir}, "per_server_watermark"),
        ({"buffer_t": BufferType.BatchReservoir, "batch_size": 2}, "per_server_watermark"),
        ({"buffer_t": BufferType.BatchReservoir, "per_server_watermark": 2}, "batch_size"),
    ],
)
def test_make_buffer_names_the_argument_that_a_kind_lacks(arguments, missing):
    with pytest.raises(ValueError, match=f"needs {missing}"):
        make_buffer(10, **arguments)


def test_make_buffer_makes_each_kind():
    assert isinstance(make_buffer(4), FIFO)
    assert isinstance(make_buffer(4, BufferType.FIRO, 2), FIRO)
    assert isinstance(make_buffer(4, BufferType.Reservoir, 4), Reservoir)
    assert isinstance(make_buffer(4, BufferType.BatchReservoir, 4, batch_size=4), BatchReservoir)
    assert make_buffer(4, BufferType.FIRO, None, 3).pseudo_epochs == 3
    with pytest.raises(UnsupportedConfiguration, match="not in this version; there are FIFO, FIRO"):
        make_buffer(4, BufferType.SimPairedReservoir, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FIRO(4, 4),
        lambda: Reservoir(4, 5),
        lambda: BatchReservoir(4, 1, 5),
        lambda: FIFO(0),
        lambda: make_buffer(4, BufferType.FIRO, 1, 0),
    ],
)
def test_numbers_that_cannot_work_are_refused_at_once(make):
    with pytest.raises(UnsupportedConfiguration):
        make()


def test_assembly_slots_follow_clients_and_capacity():
    assert default_assembly_slots(1000) == 125
    assert default_assembly_slots(10) == 16
    assert default_assembly_slots(1000, 3) == 3
    assert default_assembly_slots(10, 100) == 16
    assert default_assembly_slots(10, 0) == 1
