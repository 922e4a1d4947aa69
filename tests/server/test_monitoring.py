"""What is logged of a training: rates, waits, and what the buffer's population is like."""

import time
from collections import defaultdict

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from melissa.server.deep_learning.monitoring import ExperimentalMonitoringMixin, population_scalars
from melissa.server.deep_learning.reservoir import FIFO, Reservoir
from melissa.server.deep_learning.tensorboard import TensorboardLogger, convert_tb_logs_to_df
from melissa.server.progress import StudyProgress


@pytest.fixture
def filled(make_sample):
    """A reservoir of 10 samples, one of which has left, whose parameters and time steps are known."""

    def fill(buffer, number=10):
        for index in range(number):
            buffer.put(make_sample(index, time_step=index % 5, parameters=(float(index), 0.5)))
        return buffer

    return fill


def test_statistics_of_a_population_are_those_of_numpy(filled):
    buffer = filled(Reservoir(20, 1), 10)
    statistics = buffer.native.statistics()
    parameters, steps = np.arange(10.0), np.arange(10) % 5
    assert statistics["samples"] == statistics["unseen"] == 10
    np.testing.assert_allclose(statistics["input_mean"], [parameters.mean(), 0.5, steps.mean()])
    np.testing.assert_allclose(statistics["input_std"], [parameters.std(), 0.0, steps.std()], atol=1e-12)
    # The last one is of age 0, the first one has seen nine come after it.
    assert (statistics["age_mean"], statistics["age_max"]) == (4.5, 9)
    assert (statistics["deliveries_mean"], statistics["deliveries_max"]) == (0.0, 0)


def test_statistics_count_deliveries_and_the_unseen_and_deliver_nothing(filled):
    buffer = filled(Reservoir(20, 1), 4)
    for _ in range(50):
        buffer.get()
    before = buffer.native.metrics()["drawn"]
    statistics = buffer.native.statistics()
    times = buffer.seen_ctr
    assert statistics["deliveries_mean"] == pytest.approx(50 / 4)
    assert statistics["deliveries_max"] == max(times)
    assert statistics["unseen"] == times.get(0, 0)
    assert buffer.native.metrics()["drawn"] == before


def test_what_has_left_the_population_does_not_count(filled):
    buffer = filled(FIFO(20), 6)
    buffer.get()
    buffer.get()
    statistics = buffer.native.statistics()
    assert (statistics["samples"], statistics["age_max"]) == (4, 3)
    assert statistics["input_mean"][0] == np.mean([2, 3, 4, 5])


def test_an_empty_population_has_no_scalars(filled):
    assert FIFO(3).native.statistics()["samples"] == 0
    assert population_scalars(FIFO(3).native.statistics()) == {}


def test_scalars_of_a_population_have_their_tags(filled):
    scalars = population_scalars(filled(FIFO(20)).native.statistics())
    assert {tag: list(values) for tag, values in scalars.items()} == {
        "buffer_mean": ["parameter_0", "parameter_1", "time_step"],
        "buffer_std": ["parameter_0", "parameter_1", "time_step"],
        "buffer_seen": ["mean", "max", "unseen"],
        "buffer_age": ["mean", "max"],
    }


class Monitored(ExperimentalMonitoringMixin):
    """What the mix-in needs of a server."""

    def __init__(self, buffer, get_buffer_statistics=False):
        self.rank, self.comm_size = 0, 1
        self.nb_batches_update = 2
        self.dl_config = {"get_buffer_statistics": get_buffer_statistics}
        self.buffer = buffer
        self.tb_logger = TensorboardLogger(0)
        self._progress = StudyProgress()
        self._receiver = self
        self.room_wait_s = 0.0

    def counters(self):
        return {"room_wait_s": self.room_wait_s}


def read(tb_logger):
    tb_logger.close()
    events = EventAccumulator(str(tb_logger.log_dir))
    events.Reload()
    scalars = defaultdict(dict)
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            scalars[tag][event.step] = event.value
    return scalars


def test_rates_and_waits_are_those_since_the_last_time(tmp_path, monkeypatch, filled):
    monkeypatch.chdir(tmp_path)
    server = Monitored(filled(FIFO(20)))
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    for batch_idx in range(1, 7):
        server._progress.delivered(10)
        server._progress.trainer_wait_s += 0.25
        server.room_wait_s += 0.125
        server._monitor_batch(batch_idx)
    scalars = read(server.tb_logger)
    # A second passes from one time to the next: after one batch, then after two.
    assert scalars["samples_per_second"] == {2: 10.0, 4: 20.0, 6: 20.0}
    assert scalars["trainer_wait_share"] == {2: 0.25, 4: 0.5, 6: 0.5}
    assert scalars["receiver_wait_share"] == {2: 0.125, 4: 0.25, 6: 0.25}
    assert scalars["put_get_inc"] == {2: 10.0, 4: 10.0, 6: 10.0}
    assert not any(tag.startswith("buffer_") for tag in scalars)


def test_the_population_is_logged_where_it_is_asked_for(tmp_path, monkeypatch, filled):
    monkeypatch.chdir(tmp_path)
    server = Monitored(filled(FIFO(20)), get_buffer_statistics=True)
    for batch_idx in range(1, 3):
        server._monitor_batch(batch_idx)
    scalars = read(server.tb_logger)
    assert scalars["buffer_mean/parameter_0"] == {2: 4.5}
    assert scalars["buffer_age/max"] == {2: 9.0}
    assert scalars["buffer_seen/unseen"] == {2: 10.0}


def test_population_and_time_per_put_are_logged_at_the_number_of_samples_received(
    tmp_path, monkeypatch, filled
):
    monkeypatch.chdir(tmp_path)
    server = Monitored(filled(FIFO(20)))
    server._monitor_reception({"samples_received": 10, "room_wait_s": 0.5})
    server._monitor_reception({"samples_received": 10, "room_wait_s": 0.5})
    server._monitor_reception({"samples_received": 30, "room_wait_s": 1.5})
    scalars = read(server.tb_logger)
    assert scalars["put_time"] == {10: pytest.approx(0.05), 30: pytest.approx(0.05)}
    assert scalars["buffer_size"] == {10: 10.0, 30: 10.0}


def test_logs_become_a_data_frame_beside_the_events(tmp_path):
    import pandas

    tb_logger = TensorboardLogger(1, log_dir=tmp_path)
    tb_logger.log_scalar("Loss/train", 0.5, 3)
    tb_logger.log_scalar("Loss/train", 0.25, 4)
    tb_logger.log_scalar("put_time", 0.0, 10)
    tb_logger.close()
    path = convert_tb_logs_to_df(1, tmp_path)
    assert path == tmp_path / "gpu_1" / "data.pkl"
    frame = pandas.read_pickle(path)
    assert list(frame.columns) == ["wall_time", "name", "step", "value"]
    assert frame[["name", "step", "value"]].values.tolist() == [
        ["Loss/train", 3, 0.5],
        ["Loss/train", 4, 0.25],
        ["put_time", 10, 0.0],
    ]
