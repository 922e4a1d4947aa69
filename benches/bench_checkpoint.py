"""A checkpoint of a full buffer of 1 GB: how long it keeps training waiting, and what it costs beside it.

The bound of the pause is one copy of the buffer's memory, which a checkpoint that copied it first would take.
"""

import statistics
import time

import numpy as np
import pytest

from melissa._melissa import Buffer, Prefetcher

BYTES = 10**9
BATCH = 10
ROUNDS = 5


def full_buffer(size: int) -> Buffer:
    """Return a reservoir that is full of samples of `size` float32."""
    capacity = BYTES // (4 * size)
    buffer = Buffer("Reservoir", capacity, watermark=1, batch_size=BATCH, assembly_slots=16)
    buffer.bind([("u", size, "float32")], 5)
    values = np.ones(size, np.float32)
    for index in range(capacity):
        buffer.put(0, index, [values], [0.0] * 5)
    return buffer


def copy_seconds() -> float:
    """Return how long a copy of the buffer's memory takes, into memory that is there."""
    source, destination = np.ones(BYTES // 4, np.float32), np.ones(BYTES // 4, np.float32)
    figures = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        np.copyto(destination, source)
        figures.append(time.perf_counter() - begin)
    return statistics.median(figures)


def batches(buffer: Buffer, prefetcher: Prefetcher, size: int, until) -> float:
    """Draw batches, and put as many samples as there may be, until `until` says so; return batches/s."""
    values = np.ones(size, np.float32)
    drawn, begin = 0, time.perf_counter()
    while not until(drawn):
        prefetcher.next()
        drawn += 1
        buffer.put(1, drawn, [values], [0.0] * 5)
    return drawn / (time.perf_counter() - begin)


@pytest.mark.parametrize("kilobytes", [4, 40, 4_000])
def test_pause_of_training(report, tmp_path, kilobytes):
    size = kilobytes * 250
    bound = copy_seconds()
    buffer = full_buffer(size)
    prefetcher = Prefetcher(buffer, BATCH)
    alone = batches(buffer, prefetcher, size, lambda drawn: drawn == 1000)
    pauses, beside = [], []
    for number in range(ROUNDS):
        path = tmp_path / f"checkpoint{number}"
        begin = time.perf_counter()
        writing = buffer.cut(prefetcher=prefetcher).write(path)
        pauses.append(time.perf_counter() - begin)
        beside.append(batches(buffer, prefetcher, size, lambda drawn, writing=writing: not writing.busy))
        written = writing.wait()
        assert written is not None
        path.unlink()
    what = f"checkpoint of 1 GB in samples of {kilobytes:,} kB"
    ratios = sorted(pause / bound for pause in pauses)
    report(
        f"{what}, pause of training",
        statistics.median(pauses) * 1e3,
        bound * 1e3,
        unit="ms",
        bar="<= 1.50",
        spread=f"{ratios[0]:.2f}..{ratios[-1]:.2f}",
    )
    shares = sorted(rate / alone for rate in beside)
    report(
        f"{what}, puts and batches beside the writing",
        statistics.median(beside),
        alone,
        unit="batches/s",
        bar="",
        spread=f"{shares[0]:.2f}..{shares[-1]:.2f}",
    )
    prefetcher.stop()
