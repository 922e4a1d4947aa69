"""Batches of 10 x 40 kB drawn beside inserts, from Python, against a NumPy ring without lock, policy or ids.

Both sides do the same number of inserts in one thread and of batches in another, in one process.
"""

import threading
import time

import numpy as np
import pytest

from melissa._melissa import Batch, Buffer, Prefetcher

CAPACITY = 2000
SIZE = 10_000  # float32: 40 kB
BATCH = 10
RATIO = 4  # samples drawn for each one inserted
INSERTS = 8_000
BATCHES = INSERTS * RATIO // BATCH
SLACK = 200  # inserts
SOURCES = [np.random.default_rng(i).random(SIZE, dtype=np.float32) for i in range(8)]


def rates(insert, draw) -> tuple[float, float]:
    """Inserts and batches per second of two threads, at one insert for `RATIO` samples drawn.

    Neither gets ahead of the other by more than `SLACK` inserts: a reservoir's writer can be no faster than
    first sights allow, and without a common pace the interpreter's lock would trade one rate for the other.
    """
    done = {"insert": 0, "draw": 0}
    seconds = {}
    start = threading.Barrier(2)

    def loop(name, call, count, may_go):
        start.wait()
        begin = time.perf_counter()
        for index in range(count):
            while not may_go(index):
                time.sleep(1e-4)  # asleep, not spinning: the cores belong to those who work
            call(index)
            done[name] = index + 1
        seconds[name] = time.perf_counter() - begin

    def insert_may_go(index):
        return index * RATIO <= done["draw"] * BATCH + SLACK * RATIO

    def draw_may_go(index):
        return index * BATCH <= (done["insert"] + SLACK) * RATIO

    threads = [
        threading.Thread(target=loop, args=("insert", insert, INSERTS, insert_may_go)),
        threading.Thread(target=loop, args=("draw", draw, BATCHES, draw_may_go)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return INSERTS / seconds["insert"], BATCHES / seconds["draw"]


def numpy_ring() -> tuple[float, float]:
    ring = np.ones((CAPACITY, SIZE), np.float32)
    batch = np.empty((BATCH, SIZE), np.float32)
    indices = np.random.default_rng(0).integers(0, CAPACITY, (BATCHES, BATCH))

    def insert(index):
        ring[index % CAPACITY] = SOURCES[index & 7]

    def draw(index):
        ring.take(indices[index], axis=0, out=batch, mode="clip")

    return rates(insert, draw)


def reservoir(lane: str) -> tuple[float, float]:
    buffer = Buffer("Reservoir", CAPACITY, watermark=1, batch_size=BATCH)
    buffer.bind([("u", SIZE, "float32")], 2)
    parameters = [1.0, 2.0]
    for index in range(CAPACITY):
        buffer.put(0, index, [SOURCES[index & 7]], parameters)
    batch = Batch(buffer, BATCH)
    for _ in range(CAPACITY):
        buffer.sample_into(batch)  # most samples were seen: inserts find room

    def insert(index):
        buffer.put(1, index, [SOURCES[index & 7]], parameters)

    if lane == "sample_into":
        return rates(insert, lambda _: buffer.sample_into(batch))
    prefetcher = Prefetcher(buffer, BATCH)
    try:
        return rates(insert, lambda _: prefetcher.next())
    finally:
        prefetcher.stop()


@pytest.mark.parametrize("lane", ["sample_into", "prefetched"])
def test_fast_lane(compare, lane):
    compare(
        f"Reservoir beside inserts, 10 x 40 kB, {lane}",
        lambda: reservoir(lane),
        numpy_ring,
        unit="1/s",
        bar=">= 0.90",
        names=("inserts", "batches"),
    )
