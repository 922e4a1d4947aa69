"""Resident memory of a full buffer against what its slots and the arrays of its batches need."""

import subprocess
import sys
import textwrap

import pytest

DEPTH = 2  # batches that the prefetching thread gathers ahead
SCRIPT = textwrap.dedent(f"""
    import sys
    import numpy as np
    from melissa._melissa import Buffer, Prefetcher

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    size, capacity = int(sys.argv[1]), int(sys.argv[2])
    source = np.ones(size, np.float32)
    before = resident()
    buffer = Buffer("Reservoir", capacity, watermark=1, batch_size=10, assembly_slots=16)
    buffer.bind([("u", size, "float32")], 5)
    for index in range(capacity):
        buffer.put(0, index, [source], [0.0] * 5)
    prefetcher = Prefetcher(buffer, 10, depth={DEPTH})
    for index in range(capacity // 2):
        batch = prefetcher.next()
        buffer.put(1, index, [source], [0.0] * 5)
    metrics = buffer.metrics()
    # One batch is with its consumer and one in the making, beside those that are ready.
    print(resident() - before, (metrics["slots"] + 10 * ({DEPTH} + 2)) * metrics["stride"])
""")


@pytest.mark.parametrize(("kilobytes", "capacity"), [(4, 50_000), (40, 10_000), (400, 1_000), (4_000, 500)])
def test_resident_memory(report, kilobytes, capacity):
    command = [sys.executable, "-c", SCRIPT, str(kilobytes * 250), str(capacity)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    grown, slots = map(int, output.split())
    report(
        f"slots of a full buffer and its batches, {capacity:,} samples of {kilobytes:,} kB",
        grown / 2**20,
        slots / 2**20,
        unit="MiB",
        bar="<= 1.05",
    )
