"""The three calls of a Python solver up to the wire: what they accept, and what they say."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from melissa.exceptions import ClientError, SchemaError, ServerLostError, StudyStopped
from melissa_api.environment import SolverEnvironment
from melissa_api.solver import Solver

KEY = bytes(range(32))


class RecordingClient:
    """Stands for the connection: keeps what it is given, and fails as it is told."""

    made: "RecordingClient"

    def __init__(self, address, key, **place):
        RecordingClient.made = self
        self.address, self.key, self.place = address, key, place
        self.fields, self.sent = {}, []
        self.finalized = 0
        self.error: BaseException | None = None

    def init(self, field_name, size, dtype):
        is_new = field_name not in self.fields
        self.fields[field_name] = (size, dtype)
        return is_new

    def send(self, field_name, values):
        if self.error is not None:
            raise self.error
        self.sent.append((field_name, values))

    def finalize(self):
        self.finalized += 1


@pytest.fixture
def job(tmp_path, monkeypatch) -> Path:
    """Set the environment of a job, and put a recording client in the place of the connection."""
    key_file = tmp_path / "key"
    key_file.write_text(KEY.hex())
    monkeypatch.setenv("MELISSA_SERVER_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("MELISSA_KEY_FILE", str(key_file))
    monkeypatch.setenv("MELISSA_STUDY_EPOCH", "3")
    monkeypatch.setenv("MELISSA_SIMU_ID", "17")
    monkeypatch.delenv("MELISSA_SIM_ID", raising=False)
    monkeypatch.setenv("MELISSA_ATTEMPT", "2")
    monkeypatch.setattr("melissa._melissa.Client", RecordingClient)
    monkeypatch.setattr("atexit.register", lambda function: function)
    return key_file


@pytest.fixture
def solver(job) -> Solver:
    return Solver()


def test_the_first_declaration_connects_with_what_the_launcher_says(solver):
    solver.init("temperature", 4, "float64")
    client = RecordingClient.made
    assert (client.address, client.key) == ("127.0.0.1:1", KEY)
    assert client.place == {"study_epoch": 3, "simulation_id": 17, "attempt": 2, "rank": 0, "size": 1}
    assert client.fields == {"temperature": (4, "float64")}


def test_the_older_name_of_the_simulation_s_variable_is_read(job, monkeypatch):
    monkeypatch.delenv("MELISSA_SIMU_ID")
    monkeypatch.setenv("MELISSA_SIM_ID", "5")
    assert SolverEnvironment.read().simulation_id == 5


@pytest.mark.parametrize(
    "name",
    [
        "MELISSA_SERVER_ADDRESS",
        "MELISSA_KEY_FILE",
        "MELISSA_STUDY_EPOCH",
        "MELISSA_SIMU_ID",
        "MELISSA_ATTEMPT",
    ],
)
def test_a_missing_variable_is_named_with_who_sets_it(solver, monkeypatch, name):
    monkeypatch.delenv(name)
    expected = "MELISSA_SIM_ID" if name == "MELISSA_SIMU_ID" else name
    with pytest.raises(ClientError, match=rf"{expected} not set.*started by melissa-launcher"):
        solver.init("temperature", 4, "float64")


def test_a_wrong_number_and_an_unreadable_key_are_named(job, monkeypatch):
    monkeypatch.setenv("MELISSA_ATTEMPT", "second")
    with pytest.raises(ClientError, match="MELISSA_ATTEMPT is 'second', expected a whole number"):
        SolverEnvironment.read()
    monkeypatch.setenv("MELISSA_ATTEMPT", "2")
    job.write_text("not a key")
    with pytest.raises(ClientError, match="MELISSA_KEY_FILE"):
        SolverEnvironment.read()
    job.unlink()
    with pytest.raises(ClientError, match="does this machine see that folder"):
        SolverEnvironment.read()


def test_the_key_is_not_printed(job):
    assert "key" not in repr(SolverEnvironment.read())


def test_rank_and_size_come_from_any_communicator_like_mpi4py_s(solver):
    comm = SimpleNamespace(Get_rank=lambda: 2, Get_size=lambda: 5)
    solver.init("u", 3, "float64", comm)
    solver.init("v", 3, "float64", comm)
    assert RecordingClient.made.place["rank"] == 2
    assert RecordingClient.made.place["size"] == 5
    with pytest.raises(ClientError, match="makes this rank 0 of 1, that of the first field 2 of 5"):
        solver.init("w", 3, "float64")


def test_what_is_no_communicator_is_refused(solver):
    with pytest.raises(ClientError, match="comm is 91, expected an mpi4py communicator, or None"):
        solver.init("u", 3, "float64", 91)


def test_a_forgotten_communicator_is_warned_of(solver, monkeypatch, caplog):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    solver.init("u", 3, "float64")
    assert "MPI started 4 processes" in caplog.text


@pytest.mark.parametrize("size", [np.int32(4), np.uint64(4), True + 3])
def test_sizes_may_be_numpy_integers(solver, size):
    solver.init("u", size, "float64")
    assert RecordingClient.made.fields["u"] == (4, "float64")
    assert type(RecordingClient.made.fields["u"][0]) is int


@pytest.mark.parametrize("size", [4.0, "4", -1, None, (4,)])
def test_a_wrong_size_is_named(solver, size):
    with pytest.raises(SchemaError, match=r'melissa_init\("u"\): vect_size is .*, expected a whole number'):
        solver.init("u", size, "float64")


@pytest.mark.parametrize(
    "array",
    [
        [1, 2, 3, 4],
        (1.0, 2.0, 3.0, 4.0),
        range(1, 5),
        np.arange(1, 5, dtype=np.int8),
        np.arange(1, 5, dtype=np.float32),
        np.arange(1, 9, dtype=float)[::2] / 2 + 0.5,
        np.arange(1, 5, dtype=">f8"),
        np.arange(1, 5).reshape(2, 2).ravel(),
    ],
)
def test_any_one_dimensional_numbers_are_sent_as_contiguous_doubles(solver, array):
    solver.init("u", 4, "float64")
    solver.send("u", array)
    [(name, values)] = RecordingClient.made.sent
    assert name == "u"
    assert values.dtype == np.dtype("=f8")
    assert values.flags.c_contiguous
    assert values.tolist() == [1, 2, 3, 4]


def test_an_array_that_is_right_already_is_not_copied(solver):
    solver.init("u", 4, "float64")
    array = np.zeros(4)
    solver.send("u", array)
    assert RecordingClient.made.sent[0][1] is array


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros(5), r"5 values given, expected 4"),
        ([], r"0 values given, expected 4"),
        (
            np.zeros((2, 2)),
            r"an array of shape \(2, 2\), expected 4 values in one dimension. Use array.ravel",
        ),
        (3.0, r"an array of shape \(\)"),
        (
            np.zeros(4, dtype=complex),
            "values of type complex128 given, and the field was declared as float64",
        ),
        (["a", "b", "c", "d"], "values of type <U1 given"),
    ],
)
def test_a_wrong_array_is_named_with_field_expected_and_given(solver, array, told):
    solver.init("u", 4, "float64")
    with pytest.raises(SchemaError, match=r'melissa_send\("u"\): .*' + told):
        solver.send("u", array)
    assert RecordingClient.made.sent == []


@pytest.mark.parametrize("dtype", ["float32", np.int32, np.dtype("int64"), np.uint8])
def test_typed_fields_are_sent_as_declared(solver, dtype):
    solver.init("u", 3, dtype)
    solver.send("u", [1, 2, 3])
    values = RecordingClient.made.sent[0][1]
    assert values.dtype == np.dtype(dtype)
    assert RecordingClient.made.fields["u"][1] == np.dtype(dtype).name


def test_numbers_that_a_typed_field_cannot_hold_are_refused(solver):
    solver.init("u", 2, np.uint8)
    with pytest.raises(SchemaError, match="values beyond 0 to 255, the range of uint8"):
        solver.send("u", [1, 300])
    with pytest.raises(
        SchemaError, match="values of type float64 given, and the field was declared as uint8"
    ):
        solver.send("u", [1.0, 2.0])


@pytest.mark.parametrize("dtype", ["float16", "complex128", ">f8", "U3", "nonsense"])
def test_a_dtype_that_no_study_has_is_named(solver, dtype):
    with pytest.raises(SchemaError, match=r"expected one of float32, float64, int32, int64, uint8"):
        solver.init("u", 3, dtype)


def test_a_second_declaration_warns(solver, caplog):
    solver.init("u", 4, "float64")
    solver.init("u", 4, "float64")
    assert 'melissa_init("u") again' in caplog.text


def test_a_field_that_was_not_declared_cannot_be_sent(solver):
    with pytest.raises(ClientError, match=r'melissa_send\("v"\) without melissa_init.*here: none'):
        solver.send("v", [1])
    solver.init("u", 1, "float64")
    with pytest.raises(ClientError, match=r"Declared here: u\."):
        solver.send("v", [1])


def test_finalizing_twice_is_harmless_and_nothing_comes_after_it(solver):
    solver.init("u", 1, "float64")
    solver.finalize()
    solver.finalize()
    assert RecordingClient.made.finalized == 1
    with pytest.raises(ClientError, match="after melissa_finalize"):
        solver.send("u", [1])
    with pytest.raises(ClientError, match="after melissa_finalize"):
        solver.init("v", 1, "float64")


def test_finalizing_without_a_field_warns(solver, caplog):
    solver.finalize()
    assert "nothing was sent" in caplog.text


def test_a_study_that_stops_ends_the_solver_quietly_and_a_lost_server_does_not(solver, caplog):
    solver.init("u", 1, "float64")
    RecordingClient.made.error = StudyStopped("enough")
    with pytest.raises(StudyStopped):
        solver.send("u", [1])
    solver.finalize()
    assert RecordingClient.made.finalized == 0
    lost = Solver()
    lost.init("u", 1, "float64")
    RecordingClient.made.error = ServerLostError("gone")
    with pytest.raises(ServerLostError):
        lost.send("u", [1])


EXIT = """
import sys
import melissa._melissa
from melissa.exceptions import StudyStopped
class Client:
    def __init__(self, *args, **kwargs): ...
    def init(self, *args): return True
    def send(self, *args): raise StudyStopped("enough")
    def finalize(self): ...
melissa._melissa.Client = Client
from melissa_api import *
melissa_init("u", 1)
if "stop" in sys.argv: melissa_send("u", [1])
if "finalize" in sys.argv: melissa_finalize()
print("end")
"""


@pytest.mark.parametrize(
    ("argument", "warns", "out"), [("", True, "end\n"), ("finalize", False, "end\n"), ("stop", False, "")]
)
def test_a_solver_that_ends_without_finalizing_is_warned_of(job, argument, warns, out):
    result = subprocess.run(
        [sys.executable, "-c", EXIT, argument], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (0, out), result.stderr
    assert ("ends without melissa_finalize" in result.stderr) == warns
    assert "Traceback" not in result.stderr


def test_the_calls_never_load_mpi4py():
    code = "import sys, melissa_api; print('mpi4py' in sys.modules, 'melissa._melissa' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=os.environ
    )
    assert result.stdout == "False False\n", result.stderr


def test_the_log_is_that_of_melissa(solver, caplog):
    with caplog.at_level(logging.WARNING, logger="melissa"):
        solver.finalize()
    assert {record.name for record in caplog.records} == {"melissa"}


def test_in_an_offline_study_calls_are_checked_and_send_nothing(monkeypatch, caplog):
    monkeypatch.setenv("MELISSA_OFFLINE", "1")
    monkeypatch.delenv("MELISSA_SERVER_ADDRESS", raising=False)
    monkeypatch.setattr("melissa._melissa.Client", None)
    solver = Solver()
    solver.init("temperature", 3, "float64")
    solver.send("temperature", [1.0, 2.0, 3.0])
    with pytest.raises(SchemaError, match="2 values given, expected 3"):
        solver.send("temperature", [1.0, 2.0])
    with pytest.raises(ClientError, match="without melissa_init"):
        solver.send("flow", [1.0])
    solver.finalize()
    with pytest.raises(ClientError, match="after melissa_finalize"):
        solver.send("temperature", [1.0, 2.0, 3.0])
    assert caplog.records == []
