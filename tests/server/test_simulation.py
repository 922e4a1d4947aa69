"""The study code's view of a sample, and parts of samples."""

import pickle
import struct

import numpy as np
import pytest

from melissa.exceptions import ProtocolError
from melissa.server.deep_learning.reservoir import FIFO
from melissa.server.simulation import FieldData, PartialSimulationData, SimulationData, SimulationStatus


@pytest.fixture
def sample():
    data = {"temperature": np.arange(4.0), "pressure": np.ones(2, np.float32)}
    return SimulationData(3, 7, data, [1, 2.5, "fine"])


def test_fields_are_found_by_name_and_by_position(sample):
    assert list(sample.data) == ["temperature", "pressure"]
    assert sample.data[0] is sample.data["temperature"]
    assert sample.data[-1] is sample.data["pressure"]
    assert sample.data[np.int64(1)] is sample.data["pressure"]


def test_a_missing_field_is_named_beside_those_that_exist(sample):
    with pytest.raises(KeyError, match=r"velocity.*temperature, pressure"):
        sample.data["velocity"]
    with pytest.raises(KeyError, match="position 2: there are 2"):
        sample.data[2]


def test_parameters_are_a_plain_list(sample):
    assert type(SimulationData(0, 0, {}, (1.0, 2.0)).parameters) is list
    assert [*sample.parameters[-2:], sample.time_step] == [2.5, "fine", 7]


def test_a_sample_pickles_with_copies_of_its_arrays(sample):
    again = pickle.loads(pickle.dumps(sample))
    assert (again.simulation_id, again.time_step, again.parameters) == (3, 7, [1, 2.5, "fine"])
    assert isinstance(again.data, FieldData)
    np.testing.assert_array_equal(again.data[0], np.arange(4.0))


def test_a_sample_of_a_buffer_stays_what_it_is_while_the_buffer_goes_on():
    buffer = FIFO(2)
    buffer.put(SimulationData(0, 0, {"u": np.full(8, 1.0)}, [0.5]))
    held = buffer.get()
    for step in range(1, 20):
        buffer.put(SimulationData(0, step, {"u": np.full(8, 1.0 + step)}, [0.5]))
        buffer.get()
    np.testing.assert_array_equal(held.data["u"], np.full(8, 1.0))
    with pytest.raises(ValueError, match="read-only"):
        held.data["u"][0] = 5.0


def frame(payload=b"", **changes):
    values = {"magic": b"MLSA", "version": 1, "kind": 8, "dtype": 2, "simulation": 4, "rank": 1, "field": 0}
    values |= {"flags": 0, "step": 9, "offset": 16, "count": len(payload) // 8, "length": len(payload)}
    values |= {"crc": 0, "header_crc": 0} | changes
    return struct.pack("<4sHBBIIIIQQQQII", *values.values()) + payload


def test_a_part_is_read_from_a_data_frame():
    values = np.array([1.0, 2.0, 3.0])
    part = PartialSimulationData.from_msg(frame(values.tobytes()), 2)
    assert (part.simulation_id, part.time_step, part.client_rank, part.field, part.offset) == (4, 9, 1, 0, 16)
    assert part.data_size == 3
    np.testing.assert_array_equal(part.data, values)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        frame()[:40],
        frame(magic=b"HTTP"),
        frame(version=2),
        frame(kind=3),
        frame(dtype=77),
        frame(b"\0" * 16, count=3),
        frame(b"\0" * 16, length=8),
        frame(b"\0" * 16, count=1 << 62, length=1 << 63),
    ],
)
def test_what_is_no_data_frame_is_refused(message):
    with pytest.raises(ProtocolError):
        PartialSimulationData.from_msg(message)


def test_only_finished_and_dropped_are_final():
    assert {status for status in SimulationStatus if status.is_final} == {
        SimulationStatus.FINISHED,
        SimulationStatus.DROPPED,
    }
