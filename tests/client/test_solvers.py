"""Solvers as processes of their own, serial and under MPI: what they send is what the buffer holds."""

import subprocess
import sys
import time

import numpy as np
import pytest

SERIAL = """
import numpy as np
from melissa_api import melissa_finalize, melissa_init, melissa_send
melissa_init("temperature", 100)
for step in range(5):
    melissa_send("temperature", np.arange(100) + 1000 * step)
melissa_finalize()
"""


def test_a_serial_solver_s_doubles_arrive_as_the_server_wants_them(study):
    server = study(["temperature"], nb_time_steps=5)
    result = server.run(SERIAL)
    assert (result.returncode, result.stderr) == (0, "")
    for step in range(5):
        sample = server.buffer.get(timeout=60)
        assert (sample.simulation_id, sample.time_step) == (0, step)
        assert list(sample.parameters) == [0.0, 0.5]
        [temperature] = sample.fields
        assert temperature.dtype == np.float32
        np.testing.assert_array_equal(temperature, np.arange(100) + 1000 * step)


TYPED = """
import numpy as np
from melissa_api import melissa_finalize, melissa_init, melissa_init_typed, melissa_send, melissa_send_typed
melissa_init("u", 4)
melissa_init_typed("cells", np.int64(3), np.uint8)
melissa_init_typed("v", 2, "float32")
for step in range(3):
    melissa_send_typed("cells", [step, 128, 255])
    melissa_send("u", np.full(8, 0.1 * step)[::2])
    melissa_send_typed("v", np.array([step, -step], dtype=np.float32))
melissa_finalize()
melissa_finalize()
"""


def test_several_fields_of_several_types_meet_in_one_sample(study):
    server = study(["u", "v", "cells"], nb_time_steps=3, data_type="as_sent")
    result = server.run(TYPED)
    assert (result.returncode, result.stderr) == (0, "")
    for step in range(3):
        u, v, cells = server.buffer.get(timeout=60).fields
        assert (u.dtype, v.dtype, cells.dtype) == (np.float64, np.float32, np.uint8)
        np.testing.assert_array_equal(u, np.full(4, 0.1 * step))
        np.testing.assert_array_equal(v, [step, -step])
        np.testing.assert_array_equal(cells, [step, 128, 255])


PARALLEL = """
import numpy as np
from mpi4py import MPI
from melissa_api import melissa_finalize, melissa_init, melissa_send
comm = MPI.COMM_WORLD
parts = np.array_split(np.arange(1000.0), comm.Get_size())
offsets = np.cumsum([0] + [2 * len(part) for part in parts])
mine = parts[comm.Get_rank()]
melissa_init("temperature", len(mine), comm)
melissa_init("pressure", 2 * len(mine), comm)
for step in range(20):
    melissa_send("temperature", mine + 10000 * step)
    melissa_send("pressure", np.repeat(mine, 2) - step)
melissa_finalize()
"""


def test_the_parts_of_a_parallel_solver_s_ranks_meet_in_their_order(study, mpiexec):
    server = study(["temperature", "pressure"], nb_time_steps=20)
    result = server.run(PARALLEL, command=mpiexec)
    assert result.returncode == 0, result.stderr
    whole = np.arange(1000.0)
    for step in range(20):
        sample = server.buffer.get(timeout=60)
        assert sample.time_step == step
        temperature, pressure = sample.fields
        np.testing.assert_array_equal(temperature, whole + 10000 * step)
        np.testing.assert_array_equal(pressure, np.repeat(whole, 2) - step)
    deadline = time.monotonic() + 60
    while not server.receiver.reception_over and time.monotonic() < deadline:
        server.receiver.changes(0.1)
    assert server.receiver.ledger()["complete"] == 20


def test_finalize_returns_only_when_the_server_has_everything(study):
    server = study(["temperature"], nb_time_steps=5, capacity=2)
    script = server.folder / "slow.py"
    script.write_text(SERIAL)
    solver = subprocess.Popen([sys.executable, str(script)], env=server.environment())
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            solver.wait(timeout=2)  # capacity 2: the rest waits in the solver
        for _ in range(5):
            server.buffer.get(timeout=60)
        assert solver.wait(timeout=60) == 0
    finally:
        solver.kill()
        solver.wait()


ONE_CALL = """
from melissa_api import melissa_finalize, melissa_init, melissa_send
melissa_init({field!r}, {size})
melissa_send({field!r}, [1.0] * {size})
melissa_finalize()
"""


def test_a_field_that_the_study_does_not_have_is_refused_with_those_that_it_has(study):
    server = study(["temperature"], nb_time_steps=1)
    result = server.run(ONE_CALL.format(field="temprature", size=3))
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert "RefusedError" in last
    assert "temprature" in last
    assert "temperature" in last


def test_another_size_than_the_first_simulation_s_is_refused_with_both_and_harms_nobody(study):
    server = study(["temperature"], nb_time_steps=1, planned=3)
    assert server.run(ONE_CALL.format(field="temperature", size=3)).returncode == 0
    result = server.run(ONE_CALL.format(field="temperature", size=4), simulation=1)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert "RefusedError" in last
    assert "3" in last
    assert "4" in last
    assert server.run(ONE_CALL.format(field="temperature", size=3), simulation=2).returncode == 0
    assert [server.buffer.get(timeout=60).simulation_id for _ in range(2)] == [0, 2]


def test_a_wrong_key_is_told_to_the_solver(study):
    server = study(["temperature"], nb_time_steps=1)
    (server.folder / "key").write_text("00" * 32)
    result = server.run(ONE_CALL.format(field="temperature", size=3))
    assert result.returncode != 0
    assert "AuthenticationError" in result.stderr.strip().splitlines()[-1]


def test_a_server_that_is_not_there_is_told_with_its_address(study, monkeypatch):
    server = study(["temperature"], nb_time_steps=1)
    environment = server.environment()
    server.receiver.close()
    code = (
        "import melissa._melissa as m\n"
        "Client = m.Client\n"
        "m.Client = lambda *a, **k: Client(*a, **k, timeout=0.5)\n"
        + ONE_CALL.format(field="temperature", size=3)
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert "ServerLostError" in last
    assert environment["MELISSA_SERVER_ADDRESS"] in last


STOPPED = """
import time
from melissa_api import melissa_finalize, melissa_init, melissa_send
melissa_init("temperature", 3)
melissa_send("temperature", [1.0, 2.0, 3.0])
print("sending", flush=True)
for step in range(1000):
    time.sleep(0.01)
    melissa_send("temperature", [1.0, 2.0, 3.0])
print("never")
"""


def test_a_study_that_stops_early_ends_its_solvers_quietly(study):
    server = study(["temperature"], nb_time_steps=2000, capacity=2000)
    script = server.folder / "solver.py"
    script.write_text(STOPPED)
    solver = subprocess.Popen(
        [sys.executable, str(script)],
        env=server.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert solver.stdout.readline() == "sending\n"
    server.receiver.stop()
    out, err = solver.communicate(timeout=60)
    assert (solver.returncode, out) == (0, "")
    assert "Traceback" not in err
    assert "melissa_finalize" not in err
