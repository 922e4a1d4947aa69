"""What Melissa itself costs per sample where a study's class overrides `process_simulation_data`.

The views are made, handed to the method and let go; copying and stacking is the framework's, and not counted.
"""

import statistics
import time

import numpy as np

from melissa.server.deep_learning.lanes import ViewLane
from melissa.server.deep_learning.reservoir import Reservoir
from melissa.server.deep_learning.sample_source import PolledWait, SampleSource
from melissa.server.ending import StudyEnding
from melissa.server.simulation import SimulationData

SIZE = 10_000  # float32: 40 kB
SAMPLES = 1_000
BATCH = 10
ROUNDS = 9


def test_view_lane(benchmark, report):
    buffer = Reservoir(SAMPLES, 1)
    for step in range(SAMPLES):
        buffer.put(SimulationData(0, step, {"u": np.zeros(SIZE, np.float32)}, [1.0, 2.0]))
    source = SampleSource(buffer, BATCH, PolledWait(StudyEnding()))

    def identity(data):
        return data.data["u"], data.parameters

    lane = ViewLane(source, BATCH, False, identity, lambda samples: None)

    def draw():
        begin = time.perf_counter()
        for _ in range(SAMPLES // BATCH):
            lane.next()
        costs.append((time.perf_counter() - begin) / SAMPLES * 1e6)

    costs = []
    benchmark.pedantic(draw, rounds=ROUNDS, warmup_rounds=1)
    costs = sorted(costs[1:])
    report(
        "view lane, own cost per sample of 40 kB",
        statistics.median(costs),
        10.0,
        unit="us",
        bar="<= 1.00",
        spread=f"{costs[0] / 10:.2f}..{costs[-1] / 10:.2f}",
    )
