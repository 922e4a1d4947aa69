"""Buffers under putters and samplers in Python threads that the interpreter switches as often as it can.

Every element of a payload says which sample it is of, and is checked wherever a sample comes out: in
batches, lent, held while the buffer goes on, looked at in the population. Each test takes a second here, and
a minute with MELISSA_LONG=1 (`ci/verify/python_stress.sh`).
"""

import os
import random
import sys
import threading
import time
from collections import Counter, deque

import numpy as np
import pytest

from melissa._melissa import Batch, Buffer, Prefetcher
from melissa.exceptions import BufferClosed, EndOfData

KINDS = ["FIFO", "FIRO", "Reservoir", "BatchReservoir"]
ONCE = ("FIFO", "FIRO")
LONG = os.environ.get("MELISSA_LONG") == "1"
SECONDS = 60.0 if LONG else 1.0
PUTTERS = 3
BATCH = 4
SIZE = 400
# Nobody waits longer for anything here; whoever does has found a deadlock.
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def switch_interval():
    """The interpreter looks for another thread to run every microsecond."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def stamp(simulation, step):
    """A number that a float32 holds exactly, another one for each sample."""
    return float((simulation * 1_000_003 + step * 7919 + 1) % (1 << 24))


def fields_of(simulation, step):
    number = stamp(simulation, step)
    return [np.full(SIZE, number, np.float32), np.full(3, int(number))]


def check_fields(key, fields):
    number = stamp(*key)
    for field in fields:
        assert (field == number).all(), f"a torn payload of simulation {key[0]}, time step {key[1]}"


def check_sample(sample):
    key = (sample.simulation_id, sample.time_step)
    check_fields(key, sample.fields)
    assert sample.parameters == [float(key[0]), float(key[1])]
    assert sample.draw == key[0] + 1
    return key


def check_batch(batch):
    keys = list(zip(batch.simulation_ids.tolist(), batch.time_steps.tolist(), strict=True))
    for row, key in enumerate(keys):
        check_fields(key, [array[row] for array in batch.fields.values()])
    assert batch.inputs.tolist() == [[simulation, step, step] for simulation, step in keys]
    assert batch.draws.tolist() == [simulation + 1 for simulation, _ in keys]
    return keys


class Study:
    """One buffer with its threads, and what they have put and taken."""

    def __init__(self, kind, seed):
        self.kind = kind
        self.buffer = Buffer(
            kind, 24, watermark=9, batch_size=BATCH, seed=seed, assembly_slots=PUTTERS, lent_slots=5
        )
        self.buffer.bind([("u", SIZE, "float32"), ("count", 3, "int64")], 2)
        self.errors = []
        self.published = []
        self.delivered = []
        self.over = threading.Event()
        self.threads = []

    def start(self, work, *arguments):
        def run():
            try:
                work(*arguments)
            except BaseException as error:
                self.errors.append(error)
                # Nobody waits for a thread that is gone.
                self.buffer.fail(f"a thread of the test failed: {error}")

        thread = threading.Thread(target=run, daemon=True)
        self.threads.append(thread)
        thread.start()
        return thread

    def put(self, simulation, until):
        """Puts one time step after another until the time is over; gives what was put."""
        step = 0
        while time.monotonic() < until:
            parameters = (simulation, step)
            self.buffer.put(
                simulation,
                step,
                fields_of(simulation, step),
                parameters,
                draw=simulation + 1,
                timeout=PATIENCE,
            )
            self.published.append((simulation, step))
            step += 1

    def take(self, draw):
        """Draws to the end of data; ``draw`` gives the samples that it has got and checked."""
        while True:
            try:
                keys = draw()
            except EndOfData:
                return
            self.delivered.extend(keys)

    def gather(self):
        batch = Batch(self.buffer, BATCH)

        def draw():
            assert self.buffer.sample_into(batch, timeout=PATIENCE) == len(batch) > 0
            return check_batch(batch)

        self.take(draw)

    def prefetch(self):
        prefetcher = Prefetcher(self.buffer, BATCH, depth=2)
        kept = deque(maxlen=3)

        def draw():
            batch = prefetcher.next(timeout=PATIENCE)
            keys = check_batch(batch)
            # A view of a view is kept, and the batch itself is not.
            kept.append((keys[-1], batch.fields["u"][-1:, 5:]))
            for key, view in kept:
                assert (view == stamp(*key)).all(), f"the memory of a batch was used again: {key}"
            return keys

        self.take(draw)
        prefetcher.stop()

    def borrow(self, seed):
        """Takes single samples and lists of them, keeps some, and looks at them again when it lets go."""
        choose = random.Random(seed)
        kept = []

        def draw():
            if choose.random() < 0.5:
                samples = [self.buffer.get(timeout=PATIENCE)]
            else:
                samples = self.buffer.get_batch(BATCH, timeout=PATIENCE)
            keys = [check_sample(sample) for sample in samples]
            # The sample itself, or an array of it alone.
            kept.extend((key, sample, None) for key, sample in zip(keys, samples, strict=True))
            if choose.random() < 0.3:
                key, sample, _ = kept.pop()
                kept.append((key, None, sample.fields))
            while len(kept) > choose.randrange(12):
                key, sample, fields = kept.pop(choose.randrange(len(kept)))
                check_fields(key, fields if sample is None else sample.fields)
            return keys

        self.take(draw)
        for key, sample, fields in kept:
            check_fields(key, fields if sample is None else sample.fields)

    def look(self):
        """Looks at the population, and stops and starts publication now and then."""
        turn = 0
        while not self.over.wait(0.001):
            turn += 1
            sample = self.buffer.peek(turn % 24)
            if sample is not None:
                check_sample(sample)
            counts = self.buffer.seen_counts()
            assert sum(counts.values()) <= self.buffer.capacity
            assert 0 <= len(self.buffer) <= self.buffer.capacity
            if turn % 10 == 0:
                self.buffer.pause()
                self.buffer.resume()
            if turn % 50 == 0:
                for sample in self.buffer.samples():
                    check_sample(sample)

    def join(self, threads):
        for thread in threads:
            thread.join(PATIENCE + 2 * SECONDS)
            assert not thread.is_alive(), f"a thread never ends: {self.errors}, {self.buffer.metrics()}"
        if self.errors:
            raise self.errors[0]


@pytest.mark.timeout(4 * (SECONDS + PATIENCE))
@pytest.mark.parametrize("kind", KINDS)
def test_putters_and_samplers_in_threads_lose_nothing_and_tear_nothing(kind):
    study = Study(kind, seed=3)
    until = time.monotonic() + SECONDS
    samplers = [
        study.start(study.gather),
        study.start(study.prefetch),
        study.start(study.borrow, 1),
        study.start(study.borrow, 2),
    ]
    looking = [study.start(study.look)]
    study.join([study.start(study.put, simulation, until) for simulation in range(PUTTERS)])
    study.buffer.close()
    study.join(samplers)
    study.over.set()
    study.join(looking)

    published, delivered = set(study.published), Counter(study.delivered)
    assert len(published) == len(study.published) > 100
    assert delivered.keys() == published
    if kind in ONCE:
        assert set(delivered.values()) == {1}
    metrics = study.buffer.metrics()
    assert (metrics["published"], metrics["drawn"]) == (len(published), delivered.total())
    assert len(study.buffer) == 0
    with pytest.raises(EndOfData):
        study.buffer.get()
    with pytest.raises(BufferClosed):
        study.buffer.put(0, 0, fields_of(0, 0), (0, 0))
    print(f"{kind}: {len(published)} samples put, {delivered.total()} drawn, {metrics['view_copies']} copies")


@pytest.mark.timeout(4 * (SECONDS + PATIENCE))
@pytest.mark.parametrize("kind", KINDS)
def test_an_end_that_comes_at_any_moment_ends_everybody(kind):
    """Many short studies: closed beside puts that wait and draws that wait."""
    until = time.monotonic() + SECONDS
    rounds = 0
    while time.monotonic() < until:
        study = Study(kind, seed=rounds)
        choose = random.Random(rounds)
        rounds += 1

        def put_on(simulation, study=study):
            try:
                study.put(simulation, float("inf"))
            except BufferClosed:
                return

        putters = [study.start(put_on, simulation) for simulation in range(PUTTERS)]
        samplers = [study.start(study.gather), study.start(study.borrow, rounds)]
        # Some are closed before anything was drawn.
        time.sleep(choose.random() * 0.02)
        study.buffer.close()
        study.join(putters + samplers)
        delivered = Counter(study.delivered)
        # What was published is known of the puts that returned.
        assert delivered.keys() == set(study.published)
        assert kind not in ONCE or set(delivered.values()) <= {1}
    assert rounds > 3
