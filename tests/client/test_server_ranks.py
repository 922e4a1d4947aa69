"""Solvers of a study whose server has several ranks: each rank's receiver gets what is its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from melissa._melissa import Buffer, Client, Receiver
from melissa.exceptions import ClientError, RefusedError, StudyStopped, UnsupportedConfiguration

KEY = bytes(range(32))
STEPS = 9


class Server:
    """The receivers and buffers of all ranks of a server, in one process."""

    def __init__(self, nb_ranks: int, planned: int = 1, **settings: object) -> None:
        capacity = settings.pop("capacity", 100)
        self.buffers = [Buffer("FIFO", capacity, assembly_slots=4) for _ in range(nb_ranks)]
        self.receivers = [
            Receiver(
                buffer,
                key=KEY,
                study_epoch=1,
                field_names=["u"],
                nb_parameters=1,
                nb_time_steps=STEPS,
                planned=planned,
                rank=rank,
                nb_ranks=nb_ranks,
                **settings,
            )
            for rank, buffer in enumerate(self.buffers)
        ]
        addresses = [receiver.address for receiver in self.receivers]
        self.address = ",".join(addresses)
        for receiver in self.receivers:
            receiver.set_servers(addresses)

    def register(self, simulation: int, attempt: int = 1) -> None:
        for receiver in self.receivers:
            receiver.register(simulation, attempt, 0, [float(simulation)])

    def client(self, simulation: int, attempt: int = 1, size: int = 4) -> Client:
        client = Client(self.address, KEY, study_epoch=1, simulation_id=simulation, attempt=attempt)
        client.init("u", size, "float64")
        return client

    def steps(self, rank: int) -> list[tuple[int, int]]:
        """Return the simulation and time step of all samples that are there."""
        found = []
        while len(self.buffers[rank]):
            sample = self.buffers[rank].get(timeout=60)
            self.receivers[rank].mark_trained([sample])
            found.append((sample.simulation_id, sample.time_step))
        return found


@pytest.fixture
def server() -> Iterator[Callable[..., Server]]:
    """Return a function that starts the receivers of a server."""
    servers = []

    def start(*args: int, **settings: object) -> Server:
        servers.append(Server(*args, **settings))
        return servers[-1]

    yield start
    for started in servers:
        for receiver in started.receivers:
            receiver.close()


def run(client: Client, steps: int = STEPS) -> None:
    for step in range(steps):
        client.send("u", np.full(4, float(step)))
    client.finalize()


def test_each_server_rank_gets_its_steps_and_is_over_when_the_simulations_are_confirmed(server):
    study = server(2, 2)
    for simulation in range(2):
        study.register(simulation)
        run(study.client(simulation))
    assert not any(receiver.reception_over for receiver in study.receivers)
    for receiver in study.receivers:
        for simulation in range(2):
            receiver.confirm(simulation)
    assert all(receiver.reception_over for receiver in study.receivers)
    assert study.steps(0) == [(0, step) for step in range(0, STEPS, 2)] + [
        (1, step) for step in range(1, STEPS, 2)
    ]
    assert study.steps(1) == [(0, step) for step in range(1, STEPS, 2)] + [
        (1, step) for step in range(0, STEPS, 2)
    ]
    for receiver in study.receivers:
        sums = receiver.ledger("untrained")
        assert (sums["declared"], sums["trained"]) == (STEPS, STEPS)
        assert receiver.counters()["expected_samples"] == STEPS


def test_a_study_may_keep_each_simulation_on_one_server_rank(server):
    study = server(2, 2, distribution="simulation")
    for simulation in range(2):
        study.register(simulation)
        run(study.client(simulation))
    assert study.steps(0) == [(0, step) for step in range(STEPS)]
    assert study.steps(1) == [(1, step) for step in range(STEPS)]


SOLVER = """
import os, sys, time
import numpy as np
from mpi4py import MPI
from melissa_api import melissa_finalize, melissa_init, melissa_send
comm = MPI.COMM_WORLD
part = np.array_split(np.arange(100.0), comm.Get_size())[comm.Get_rank()]
melissa_init("u", len(part), comm)
for step in range(9):
    melissa_send("u", part + 1000 * step)
    if step == 4 and "wait" in sys.argv:
        comm.Barrier()
        if comm.Get_rank() == 0:
            open(sys.argv[2], "w").close()
        time.sleep(60)
melissa_finalize()
"""


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def test_a_parallel_solver_that_is_killed_goes_on_where_each_server_rank_lacks_it(server, mpiexec, tmp_path):
    study = server(2)
    script, there, key_file = tmp_path / "solver.py", tmp_path / "there", tmp_path / "key"
    script.write_text(SOLVER)
    key_file.write_text(KEY.hex())
    environment = os.environ | {
        "MELISSA_SERVER_ADDRESS": study.address,
        "MELISSA_KEY_FILE": str(key_file),
        "MELISSA_STUDY_EPOCH": "1",
        "MELISSA_SIMU_ID": "0",
    }
    study.register(0)
    command = [*mpiexec, sys.executable, str(script)]
    solver = subprocess.Popen(
        [*command, "wait", str(there)], env=environment | {"MELISSA_ATTEMPT": "1"}, start_new_session=True
    )
    wait_for(there.exists, "the solver has sent five steps")
    os.killpg(solver.pid, signal.SIGKILL)
    solver.wait()
    study.register(0, 2)
    result = subprocess.run(
        command,
        env=environment | {"MELISSA_ATTEMPT": "2"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for rank, receiver in enumerate(study.receivers):
        receiver.confirm(0)
        assert receiver.reception_over
        own = list(range(rank, STEPS, 2))
        samples = [study.buffers[rank].get(timeout=60) for _ in own]
        assert [sample.time_step for sample in samples] == own
        for sample in samples:
            np.testing.assert_array_equal(sample.fields[0], np.arange(100.0) + 1000 * sample.time_step)
        assert receiver.ledger()["duplicates_refused"] == 0


def test_a_stop_of_any_server_rank_ends_the_solver(server):
    study = server(2)
    study.register(0)
    client = study.client(0)
    client.send("u", np.zeros(4))
    study.receivers[1].stop()
    with pytest.raises(StudyStopped, match=study.receivers[1].address):
        run(client)


def test_samples_for_validation_are_taken_beside_the_buffer(server):
    study = server(2, 1, validation=1)
    for simulation in range(2):
        study.register(simulation)
        run(study.client(simulation))
    samples = study.receivers[0].take_validation()
    assert [(sample.simulation_id, sample.time_step) for sample in samples] == [
        (1, step) for step in range(STEPS)
    ]
    assert all(sample.is_copy for sample in samples)
    np.testing.assert_array_equal(samples[3].fields[0], np.full(4, 3.0))
    assert list(samples[3].parameters) == [1.0]
    assert study.receivers[0].take_validation() == study.receivers[1].take_validation() == []
    assert [len(buffer) for buffer in study.buffers] == [5, 4]
    sums = study.receivers[0].ledger()
    assert (sums["declared"], sums["validation_received"]) == (5, STEPS)
    assert study.receivers[0].counters()["validation_received"] == STEPS


def test_confirming_what_is_not_finished_or_not_known_is_an_error(server):
    study = server(2)
    study.register(0)
    with pytest.raises(ValueError, match="simulation 0 cannot be confirmed: it is planned on server rank 0"):
        study.receivers[0].confirm(0)
    with pytest.raises(ValueError, match="simulation 7 is unknown"):
        study.receivers[0].confirm(7)


def test_settings_of_server_ranks_that_make_no_sense_are_refused(server):
    with pytest.raises(ValueError, match='distribution "dice" is neither round_robin nor simulation'):
        server(2, distribution="dice")
    with pytest.raises(UnsupportedConfiguration, match="expected to be"):
        server(2, distribution="first")
    study = server(2)
    with pytest.raises(UnsupportedConfiguration, match="the addresses of 2 server ranks were expected"):
        study.receivers[0].set_servers([study.receivers[0].address])
    study.register(0)
    client = Client(study.receivers[0].address, KEY, study_epoch=1, simulation_id=0, attempt=1)
    client.init("u", 1, "float64")
    with pytest.raises(ClientError, match="has 1 address, and the server has 2 ranks"):
        client.send("u", [0.0])


def test_a_server_of_several_ranks_on_all_interfaces_is_reached_by_its_host_s_name(server):
    study = server(2, host="0.0.0.0", advertise="localhost")
    assert all(receiver.address.startswith("localhost:") for receiver in study.receivers)
    study.register(0)
    run(study.client(0))
    assert [len(buffer) for buffer in study.buffers] == [5, 4]


def test_a_wrong_number_of_values_on_one_rank_is_refused_by_all(server):
    study = server(2, 2)
    for simulation in range(2):
        study.register(simulation)
    run(study.client(0))
    with pytest.raises(RefusedError, match="has 4 elements in this study"):
        study.client(1, size=5).send("u", np.zeros(5))
