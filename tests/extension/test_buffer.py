"""The extension's buffers as Python sees them: views, batches, waits, forks."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from melissa._melissa import Batch, Buffer, Prefetcher
from melissa.exceptions import (
    BufferClosed,
    EndOfData,
    ForkedProcessError,
    MemoryLimitError,
    ReceptionError,
    SchemaError,
    TrainingBufferError,
    UnsupportedConfiguration,
    WaitTimeout,
)

SIZE = 50


def make_buffer(kind="FIFO", capacity=20, **options):
    buffer = Buffer(kind, capacity, **options)
    buffer.bind([("u", SIZE, "float32"), ("count", 3, "int64")], 2)
    return buffer


def put(buffer, step, **options):
    buffer.put(1, step, [np.full(SIZE, step, np.float32), np.full(3, step)], [step, -step], draw=2, **options)


def test_a_sample_comes_back_as_it_was_put():
    buffer = make_buffer()
    put(buffer, 7)
    sample = buffer.get()
    assert (sample.simulation_id, sample.draw, sample.time_step) == (1, 2, 7)
    assert sample.parameters == [7.0, -7.0]
    field, count = sample.fields
    assert field.dtype == np.float32
    assert field.tolist() == [7.0] * SIZE
    assert count.dtype == np.int64
    assert count.tolist() == [7] * 3


def test_views_are_read_only_and_never_change_while_they_are_held():
    buffer = make_buffer(capacity=4, lent_slots=2)
    put(buffer, 0)
    field, _ = buffer.get().fields
    with pytest.raises(ValueError, match="read-only"):
        field[0] = 1.0
    for step in range(1, 50):
        put(buffer, step)
        buffer.get()
    assert field.tolist() == [0.0] * SIZE


def test_hoarded_samples_become_copies_so_that_puts_go_on():
    buffer = make_buffer(capacity=4, lent_slots=2)
    hoard = []
    for step in range(30):
        put(buffer, step, timeout=60)
        hoard.append(buffer.get(timeout=60))
    assert sum(not sample.is_copy for sample in hoard) == 2
    assert [sample.fields[0][0] for sample in hoard] == list(range(30))


def test_a_batch_has_parameters_and_time_step_beside_the_fields():
    buffer = make_buffer()
    for step in range(5):
        put(buffer, step)
    batch = Batch(buffer, 8)
    buffer.close()
    assert buffer.sample_into(batch) == len(batch) == 5
    assert batch.inputs.dtype == np.float32
    assert batch.inputs.tolist() == [[t, -t, t] for t in range(5)]
    assert batch.parameters.tolist() == [[t, -t] for t in range(5)]
    assert batch.time_steps.tolist() == list(range(5))
    assert batch.simulation_ids.tolist() == [1] * 5
    assert batch.draws.tolist() == [2] * 5
    assert list(batch.fields) == ["u", "count"]
    assert batch.fields["u"].shape == (5, SIZE)
    assert batch.fields["count"][:, 0].tolist() == list(range(5))
    with pytest.raises(EndOfData):
        buffer.sample_into(batch)


def test_inputs_are_float64_when_a_field_is():
    buffer = Buffer("FIFO", 2)
    buffer.bind([("u", 1, "float64")], 1)
    buffer.put(0, 3, [[1.5]], [0.1])
    batch = Batch(buffer, 1)
    buffer.sample_into(batch)
    assert batch.inputs.dtype == np.float64
    assert batch.inputs.tolist() == [[0.1, 3.0]]


def test_memory_of_a_batch_is_used_again_only_when_nothing_refers_to_it():
    buffer = make_buffer("Reservoir", capacity=20, watermark=20, batch_size=4)
    for step in range(20):
        put(buffer, step)
    prefetcher = Prefetcher(buffer, 4)
    kept, values, addresses = [], [], set()
    for index in range(200):
        batch = prefetcher.next(timeout=60)
        array = batch.fields["u"]
        addresses.add(array.ctypes.data)
        if index % 20 == 0:
            # Only a view of a view of the array is kept.
            kept.append(array[1:, 3:])
            values.append(kept[-1].copy())
        del batch, array
    gc.collect()
    for view, value in zip(kept, values, strict=True):
        assert np.array_equal(view, value)
    assert len(addresses) < 30, "memory that nothing refers to is used again"


def test_a_wait_lets_other_threads_run_and_ends_with_data():
    buffer = make_buffer()
    threading.Timer(0.2, put, (buffer, 3)).start()
    start = time.monotonic()
    assert buffer.get(timeout=100).time_step == 3
    assert time.monotonic() - start < 60


def test_a_wait_that_runs_out_says_so():
    buffer = make_buffer("FIRO", watermark=3)
    put(buffer, 0)
    with pytest.raises(WaitTimeout):
        buffer.get(timeout=0.05)
    with pytest.raises(TimeoutError):
        Prefetcher(buffer, 2).next(timeout=0.05)
    assert buffer.wait_ready(0.05) is False


def test_a_batch_that_runs_out_of_time_is_short_and_loses_nothing():
    buffer = make_buffer()
    put(buffer, 0)
    assert [sample.time_step for sample in buffer.get_batch(3, timeout=0.05)] == [0]


def test_a_failure_of_the_receiver_ends_the_wait():
    buffer = make_buffer()
    threading.Timer(0.1, buffer.fail, ("the network is gone",)).start()
    with pytest.raises(ReceptionError, match="the network is gone"):
        buffer.get(timeout=60)


def test_nothing_is_published_while_the_buffer_is_paused():
    buffer = make_buffer()
    buffer.pause()
    with pytest.raises(WaitTimeout):
        put(buffer, 0, timeout=0.05)
    assert len(buffer) == 0
    buffer.resume()
    put(buffer, 0, timeout=60)
    assert len(buffer) == 1


def test_after_the_end_a_put_is_refused_and_gets_drain():
    buffer = make_buffer("Reservoir", watermark=10)
    for step in range(5):
        put(buffer, step)
    buffer.close()
    with pytest.raises(BufferClosed):
        put(buffer, 5)
    assert sorted(buffer.get(1).time_step for _ in range(5)) == list(range(5))
    with pytest.raises(EndOfData):
        buffer.get()


def test_seen_counts_and_peek_look_without_delivering():
    buffer = make_buffer("Reservoir", watermark=1)
    for step in range(3):
        put(buffer, step)
    assert buffer.seen_counts() == {0: 3}
    assert [buffer.peek(index).time_step for index in range(3)] == [0, 1, 2]
    assert buffer.peek(3) is None
    assert [sample.time_step for sample in buffer.samples()] == [0, 1, 2]
    assert buffer.seen_counts() == {0: 3}
    buffer.get()
    assert buffer.seen_counts() == {0: 2, 1: 1}


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Buffer("LIFO", 3), ValueError, "FIFO, FIRO, Reservoir, BatchReservoir"),
        (lambda: Buffer("FIRO", 3, watermark=3), UnsupportedConfiguration, "3 and 3"),
        (lambda: Buffer("Reservoir", 3, watermark=4), UnsupportedConfiguration, "4 and 3"),
        (lambda: Buffer("FIFO", 3, pseudo_epochs=2), UnsupportedConfiguration, "FIRO"),
        (lambda: Buffer("FIFO", 3).put(0, 0, [[1.0]]), TrainingBufferError, "no sample yet"),
        (lambda: Batch(Buffer("FIFO", 3), 2), TrainingBufferError, "no sample yet"),
        (lambda: Buffer("FIFO", 3).bind([("u", 4, "float16")], 0), SchemaError, "float16"),
        (lambda: Buffer("FIFO", 3).bind([], 0), SchemaError, "one field"),
        (lambda: make_buffer().bind([("u", 4, "float32")], 0), SchemaError, "50 x float32"),
        (lambda: make_buffer().put(0, 0, [np.zeros(SIZE)]), SchemaError, "2 fields"),
        (
            lambda: make_buffer().put(0, 0, [np.zeros(9), np.zeros(3)], [1, 2]),
            SchemaError,
            '"u" has 200 bytes',
        ),
        (lambda: make_buffer().put(0, 0, [np.zeros(SIZE), np.zeros(3)], [1]), SchemaError, "2 parameters; 1"),
        (
            lambda: make_buffer().put(0, 0, [np.zeros((5, 10)), np.zeros(3)], [1, 2]),
            ValueError,
            "one-dimensional",
        ),
        (lambda: Buffer("FIFO", 1 << 30).bind([("u", 1 << 20, "float64")], 0), MemoryLimitError, "MiB"),
    ],
)
def test_misuse_is_told_in_words(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


def test_ctrl_c_ends_a_wait_at_once():
    script = textwrap.dedent("""
        import time
        from melissa._melissa import Buffer
        buffer = Buffer("FIFO", 3)
        buffer.bind([("u", 4, "float32")], 0)
        print("waiting", flush=True)
        try:
            buffer.get()
        except KeyboardInterrupt:
            print("interrupted", time.time(), flush=True)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.3)
    sent = time.time()
    process.send_signal(signal.SIGINT)
    word, when = process.stdout.readline().split()
    process.wait(timeout=60)
    assert word == "interrupted"
    assert float(when) - sent < 5.0  # 0.2 s on an idle machine


def test_use_in_a_forked_child_is_refused():
    buffer = make_buffer()
    put(buffer, 0)
    prefetcher = Prefetcher(buffer, 1)
    child = os.fork()
    if child == 0:
        refused = 0
        for call in (buffer.get, prefetcher.next, lambda: put(buffer, 1)):
            try:
                call()
            except ForkedProcessError as error:
                refused += "num_workers=0" in str(error)
        os._exit(refused)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 3


def test_putters_and_samplers_in_threads_see_whole_samples():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    buffer = make_buffer("Reservoir", capacity=10, watermark=2, batch_size=3, assembly_slots=3)
    seen, errors = set(), []

    def putter(first):
        for step in range(first, 600, 2):
            put(buffer, step, timeout=60)

    def sampler():
        batch = Batch(buffer, 3)
        try:
            while True:
                buffer.sample_into(batch, timeout=60)
                fields = batch.fields["u"]
                assert (fields == batch.time_steps[:, None]).all()
                seen.update(batch.time_steps.tolist())
        except EndOfData:
            pass
        except BaseException as error:
            errors.append(error)

    try:
        putters = [threading.Thread(target=putter, args=(first,)) for first in range(2)]
        samplers = [threading.Thread(target=sampler) for _ in range(2)]
        for thread in putters + samplers:
            thread.start()
        for thread in putters:
            thread.join()
        buffer.close()
        for thread in samplers:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    assert seen == set(range(600))
