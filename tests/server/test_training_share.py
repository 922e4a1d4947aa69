"""How much of training is done: from 0 to 1, never backwards, for every kind of buffer."""

from types import SimpleNamespace

import pytest

from melissa.exceptions import EndOfData
from melissa.server.deep_learning.reservoir import FIFO, FIRO, BatchReservoir, Reservoir
from melissa.server.deep_learning.training_share import TrainingShare
from melissa.server.progress import StudyProgress

EXPECTED = 40


class Run:
    """A training whose samples come one by one, with a draw or more after each."""

    def __init__(self, buffer, expected=EXPECTED):
        self.buffer, self.progress, self.complete = buffer, StudyProgress(), 0
        self.share = TrainingShare()
        self.share.samples_expected = expected
        self.share.follow(buffer, SimpleNamespace(ledger=lambda: {"complete": self.complete}), self.progress)
        self.seen = []

    def look(self):
        self.share.raise_to(self.share.here())
        self.seen.append(self.share.value)

    def receive(self, sample):
        self.buffer.put(sample, timeout=1.0)
        self.complete += 1

    def draw(self):
        self.look()
        self.buffer.get(timeout=1.0)
        self.progress.delivered(1)

    def drain(self):
        self.buffer.native.close()
        while True:
            try:
                self.draw()
            except EndOfData:
                return


@pytest.mark.parametrize(
    "buffer", [FIFO(20), FIRO(20, 5), Reservoir(20, 10), BatchReservoir(20, 10, 4)], ids=lambda b: b.kind.name
)
def test_it_goes_from_0_to_1_and_never_back(buffer, make_sample):
    run = Run(buffer)
    for index in range(EXPECTED):
        run.receive(make_sample(index))
        if index + 1 > buffer.watermark:
            run.draw()
    run.drain()
    assert run.seen[0] == pytest.approx(0.0, abs=1.5 / EXPECTED)
    assert run.seen == sorted(run.seen)
    assert run.seen[-1] == 1.0
    steps = [after - before for before, after in zip(run.seen, run.seen[1:], strict=False)]
    # Of a FIFO and a FIRO each delivery is one part; a reservoir's parts are those of what comes and drains.
    assert max(steps) <= 1 / 30 + 1e-9


def test_passes_over_all_samples_are_counted_each(make_sample):
    run = Run(FIRO(EXPECTED, 0, pseudo_epochs=3))
    for index in range(EXPECTED):
        run.receive(make_sample(index))
    run.drain()
    assert run.seen[: 3 * EXPECTED : EXPECTED] == [0.0, pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert run.seen[-1] == 1.0


def test_clients_that_were_given_up_are_no_part_of_the_whole(make_sample):
    run = Run(FIFO(20), expected=100)
    for index in range(10):
        run.receive(make_sample(index))
    run.drain()
    assert run.seen[0] == 0.0
    assert run.seen[5] == 0.5
    assert run.seen[-1] == 1.0


def test_a_reservoir_that_never_filled_makes_one_step_at_the_end_of_reception(make_sample):
    run = Run(Reservoir(200, 10), expected=100)
    for index in range(50):
        run.receive(make_sample(index))
        run.look()
    # Of 100 that are to come and as many in the drain, 10 are the watermark.
    assert run.seen[-1] == pytest.approx(40 / 190)
    run.drain()
    assert run.seen[-1] == 1.0


def test_it_stays_0_while_nobody_knows_how_much_will_come(make_sample):
    run = Run(FIFO(20), expected=None)
    run.receive(make_sample(0))
    run.draw()
    run.look()
    assert run.seen == [0.0, 0.0]


def test_before_data_can_come_it_is_0():
    assert TrainingShare().here() == 0.0
