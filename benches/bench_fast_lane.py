"""Batches of 10 x 40 kB drawn beside inserts, from Python: ours and others' against a NumPy ring.

All do inserts in one thread and batches in another, of the same data, at one ratio of the two, in one
process. The ring has no lock, no policy and no ids.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from rivals import OPTIONAL, ListReservoir, NumpyRing, is_installed

from melissa._melissa import Batch, Buffer, Prefetcher

CAPACITY = 2000
SIZE = 10_000  # float32: 40 kB
BATCH = 10
RATIO = 4  # samples drawn for each one inserted
INSERTS = 8_000
BATCHES = INSERTS * RATIO // BATCH
SLACK = 200  # inserts
SOURCES = [np.random.default_rng(i).random(SIZE, dtype=np.float32) for i in range(8)]


def rates(insert: Callable[[int], Any], draw: Callable[[], Any]) -> tuple[float, float]:
    """Inserts and batches per second of two threads, at one insert for `RATIO` samples drawn.

    Neither gets ahead of the other by more than `SLACK` inserts: a reservoir's writer can be no faster than
    first sights allow, and without a common pace the interpreter's lock would trade one rate for the other.
    """
    done = {"insert": 0, "draw": 0}
    seconds = {}
    start = threading.Barrier(2)
    failed = threading.Event()

    def loop(name, call, count, may_go):
        start.wait()
        begin = time.perf_counter()
        try:
            for index in range(count):
                while not may_go(index):
                    if failed.is_set():
                        return
                    time.sleep(1e-4)  # asleep, not spinning: the cores belong to those who work
                call(index)
                done[name] = index + 1
        except BaseException:
            failed.set()
            raise
        seconds[name] = time.perf_counter() - begin

    def insert_may_go(index):
        return index * RATIO <= done["draw"] * BATCH + SLACK * RATIO

    def draw_may_go(index):
        return index * BATCH <= (done["insert"] + SLACK) * RATIO

    with ThreadPoolExecutor(2) as pool:
        loops = [
            pool.submit(loop, "insert", insert, INSERTS, insert_may_go),
            pool.submit(loop, "draw", lambda _: draw(), BATCHES, draw_may_go),
        ]
    for ended in loops:
        ended.result()
    return INSERTS / seconds["insert"], BATCHES / seconds["draw"]


def rates_of(buffer: Any) -> tuple[float, float]:
    """Fill a buffer of another kind, see most samples, and measure its rates."""
    for index in range(CAPACITY):
        buffer.put(SOURCES[index & 7])
    for _ in range(CAPACITY // BATCH * 3):
        buffer.draw()
    return rates(lambda index: buffer.put(SOURCES[index & 7]), buffer.draw)


def numpy_ring() -> tuple[float, float]:
    return rates_of(NumpyRing(CAPACITY, SIZE, BATCH, CAPACITY + BATCHES))


def reservoir(lane: str) -> tuple[float, float]:
    buffer = Buffer("Reservoir", CAPACITY, watermark=1, batch_size=BATCH)
    buffer.bind([("u", SIZE, "float32")], 2)
    parameters = [1.0, 2.0]
    for index in range(CAPACITY):
        buffer.put(0, index, [SOURCES[index & 7]], parameters)
    batch = Batch(buffer, BATCH)
    for _ in range(CAPACITY // BATCH * 3):
        buffer.sample_into(batch)  # most samples were seen: inserts find room

    def insert(index):
        buffer.put(1, index, [SOURCES[index & 7]], parameters)

    if lane == "sample_into":
        return rates(insert, lambda: buffer.sample_into(batch))
    prefetcher = Prefetcher(buffer, BATCH)
    try:
        return rates(insert, prefetcher.next)
    finally:
        prefetcher.stop()


@pytest.mark.timeout(600)
def test_fast_lane(compare, leave_out):
    contestants = {
        "Melissa, sample_into": lambda: reservoir("sample_into"),
        "Melissa, prefetched": lambda: reservoir("prefetched"),
        "list of arrays": lambda: rates_of(ListReservoir(CAPACITY, 1, BATCH)),
    }
    for package, make in OPTIONAL.items():
        if is_installed(package):
            contestants[package] = lambda make=make: rates_of(make(CAPACITY, SIZE, BATCH))
        else:
            leave_out(package, f"it is not installed (pip install {package})")
    compare(
        "10 x 40 kB",
        contestants,
        numpy_ring,
        unit="1/s",
        bars={"Melissa, sample_into": ">= 0.90", "Melissa, prefetched": ">= 0.90"},
        names=("inserts", "batches"),
    )
