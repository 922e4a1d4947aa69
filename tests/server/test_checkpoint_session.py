"""A cut through reception: what a restarted receiver knows, and what its clients send again."""

import contextlib
import threading
import time

import numpy as np
import pytest

from melissa._melissa import Buffer, CheckpointFile, Client, Receiver
from melissa.exceptions import CheckpointError, EndOfData, ServerLostError, StudyStopped

KEY = bytes(range(32))
STEPS = 8


class Reception:
    """A receiver with one simulation, `capacity` places, and whoever takes from them."""

    def __init__(self, capacity=4, epoch=1, restored=None, simulations=(), planned=1):
        buffer = Buffer("FIFO", capacity, assembly_slots=2)
        self.buffer = buffer if restored is None else restored.restore_buffer(buffer)
        self.epoch = epoch
        self.receiver = Receiver(
            self.buffer,
            key=KEY,
            study_epoch=epoch,
            field_names=["u"],
            nb_parameters=1,
            nb_time_steps=STEPS,
            planned=planned,
            restored=restored,
            simulations=simulations,
        )

    def send(self, simulation=0, attempt=1, until=STEPS, finalize=True):
        self.receiver.register(simulation, attempt, 0, [0.5])
        client = Client(
            self.receiver.address, KEY, study_epoch=self.epoch, simulation_id=simulation, attempt=attempt
        )
        client.init("u", 3, "float32")

        def run():
            # A test may end before its client has.
            with contextlib.suppress(ServerLostError, StudyStopped):
                for step in range(until):
                    client.send("u", np.full(3, step, np.float32))
                if finalize:
                    client.finalize()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return client, thread

    def wait(self, name, value):
        deadline = time.monotonic() + 60
        while self.receiver.counters()[name] != value:
            assert time.monotonic() < deadline, self.receiver.counters()
            time.sleep(0.005)

    def take(self, nb_samples):
        samples = [self.buffer.get(5.0) for _ in range(nb_samples)]
        self.receiver.mark_trained(samples)
        return [sample.time_step for sample in samples]

    def checkpoint(self, path):
        written = self.buffer.cut(self.receiver).write(path).wait()
        return CheckpointFile(path, (written["bytes"], written["crc32c"]))


def test_a_sample_that_waits_for_room_is_sent_again(tmp_path):
    first = Reception(capacity=4)
    _client, _ = first.send()
    first.wait("samples_waiting", 1)
    assert first.receiver.ledger()["complete"] == 5
    file = first.checkpoint(tmp_path / "checkpoint")
    assert file.population == 4
    assert file.ledger["complete"] == 4, "the fifth is in no buffer"
    assert file.simulations == [(0, 1, 0, False, 4)]

    second = Reception(epoch=2, restored=file, simulations=[(0, 1, 0, "planned")])
    assert second.receiver.counters()["samples_received"] == 4
    _client, thread = second.send(attempt=2)
    assert second.take(STEPS) == list(range(STEPS))
    thread.join(10)
    ledger = second.receiver.ledger("untrained")
    assert (ledger["declared"], ledger["complete"], ledger["trained"]) == (STEPS, STEPS, STEPS)
    assert ledger["duplicates_refused"] == 0
    with pytest.raises(EndOfData):
        second.buffer.get(1.0)


def test_what_was_trained_counts_and_what_was_drawn_and_not_trained_is_kept(tmp_path):
    first = Reception(capacity=8)
    first.send()
    first.wait("simulations_finished", 1)
    assert first.take(2) == [0, 1]
    drawn = first.buffer.get_batch(2)
    written = first.buffer.cut(first.receiver, ahead=[drawn]).write(tmp_path / "checkpoint").wait()
    file = CheckpointFile(tmp_path / "checkpoint", (written["bytes"], written["crc32c"]))
    assert (file.pending, file.population) == ([2], 4)
    assert file.ledger["trained"] == 2

    second = Reception(capacity=8, epoch=2, restored=file, simulations=[(0, 1, 0, "finished")])
    assert second.receiver.reception_over
    second.receiver.mark_trained(file.pending_samples())
    assert second.take(4) == [4, 5, 6, 7]
    ledger = second.receiver.ledger("untrained")
    assert ledger["declared"] == ledger["trained"] == STEPS


def test_a_finished_simulation_of_which_something_is_missing_runs_again(tmp_path):
    first = Reception(capacity=STEPS, planned=2)
    _, thread = first.send()
    thread.join(10)
    first.wait("simulations_finished", 1)
    file = first.checkpoint(tmp_path / "checkpoint")
    # Another server rank lacks a time step of it, say.
    second = Reception(
        capacity=STEPS,
        epoch=2,
        restored=file,
        simulations=[(0, 1, 0, "planned"), (1, 1, 0, "dropped")],
        planned=2,
    )
    assert not second.receiver.reception_over
    assert second.receiver.counters()["simulations_dropped"] == 1
    _client, thread = second.send(attempt=2)
    thread.join(10)
    second.wait("simulations_finished", 1)
    assert second.take(STEPS) == list(range(STEPS))


def test_a_buffer_that_was_closed_takes_samples_again_where_the_last_simulation_runs_again(tmp_path):
    first = Reception(capacity=STEPS)
    _, thread = first.send()
    thread.join(10)
    first.wait("simulations_finished", 1)
    assert first.take(3) == [0, 1, 2]
    file = first.checkpoint(tmp_path / "checkpoint")
    assert file.buffer["closed"]
    assert file.simulations == [(0, 1, 0, True, STEPS)]
    # Another server rank lacks a time step of it; and one more was planned since.
    second = Reception(capacity=STEPS, epoch=2, restored=file, simulations=[(0, 1, 0, "planned")], planned=2)
    assert not second.buffer.closed
    assert not second.receiver.reception_over
    assert second.take(STEPS - 3) == list(range(3, STEPS))
    with pytest.raises(TimeoutError):
        second.buffer.get(0.05)
    for simulation, attempt in ((0, 2), (1, 1)):
        _client, thread = second.send(simulation, attempt)
        thread.join(10)
    assert second.take(STEPS) == list(range(STEPS))
    assert second.buffer.closed
    assert second.receiver.reception_over


def test_attempts_of_before_the_restart_are_refused(tmp_path):
    first = Reception(capacity=STEPS)
    client, _ = first.send(until=3, finalize=False)
    first.wait("samples_received", 3)
    file = first.checkpoint(tmp_path / "checkpoint")
    second = Reception(capacity=STEPS, epoch=2, restored=file, simulations=[(0, 4, 0, "planned")])
    with pytest.raises(ValueError, match="attempt 4 came after attempt 4"):
        second.receiver.register(0, 4, 0, [0.5])
    second.receiver.register(0, 5, 0, [0.5])
    del client


def test_a_study_that_is_being_stopped_gives_no_cut(tmp_path):
    reception = Reception(capacity=4)
    client, _ = reception.send()
    reception.wait("samples_waiting", 1)
    reception.receiver.stop()
    with pytest.raises(CheckpointError, match="being stopped"):
        reception.checkpoint(tmp_path / "checkpoint")
    del client
