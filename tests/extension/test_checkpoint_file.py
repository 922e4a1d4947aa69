"""Checkpoint files: what is written is what goes on, and a damaged file is found out."""

import json
import struct
import time

import numpy as np
import pytest

from melissa._melissa import Buffer, CheckpointFile, Prefetcher
from melissa.exceptions import CheckpointError, EndOfData, TrainingBufferError, UnsupportedConfiguration

FIELDS = [("u", 3, "float32"), ("v", 2, "float64"), ("mask", 5, "uint8")]
BATCH = 4

KINDS = {
    "FIFO": {"capacity": 24},
    "FIRO": {"capacity": 24, "watermark": 6},
    "FIRO of 3 passes": {"capacity": 120, "pseudo_epochs": 3},
    "Reservoir": {"capacity": 24, "watermark": 8},
    "BatchReservoir": {"capacity": 24, "watermark": 8, "batch_size": BATCH},
}


def make_buffer(name):
    options = KINDS[name] | {"seed": 5, "assembly_slots": 4}
    return Buffer(name.split()[0], options.pop("capacity"), **options)


def put(buffer, number, timeout=60.0):
    fields = [
        np.full(3, number, np.float32),
        np.full(2, number + 0.5),
        np.full(5, number % 251, np.uint8),
    ]
    buffer.put(number // 10, number % 10, fields, [number / 3, 0.1], draw=number % 2, timeout=timeout)


def content(batch):
    """Everything that a training step can see of a batch."""
    return (
        batch.simulation_ids.tolist(),
        batch.draws.tolist(),
        batch.time_steps.tolist(),
        batch.inputs.tolist(),
        {name: values.tolist() for name, values in batch.fields.items()},
    )


def sample_content(sample):
    fields = [values.tolist() for values in sample.fields]
    return sample.simulation_id, sample.draw, sample.time_step, sample.parameters, fields


class FastLane:
    """Batches of the prefetching thread, which draws as far ahead as it can after each action."""

    DEPTH = 2

    def __init__(self, buffer, restored=None):
        ahead = 0 if restored is None else sum(restored.pending)
        self.drawn_before = buffer.metrics()["drawn"] - ahead
        self.prefetcher = Prefetcher(buffer, BATCH, depth=self.DEPTH, restored=restored)
        self.buffer = buffer
        self.delivered = 0

    def next(self):
        batch = self.prefetcher.next(5.0)
        self.delivered += len(batch)
        return content(batch)

    def settle(self):
        """Wait until the thread has nothing to do, so that its draws have their place among the actions."""
        time.sleep(0.001)  # steps that are shorter make consumers draw for themselves
        deadline = time.monotonic() + 60
        while self._has_work() and time.monotonic() < deadline:
            time.sleep(0.0005)
        assert not self._has_work()

    def _has_work(self):
        buffer = self.buffer
        drawn = buffer.metrics()["drawn"] - self.drawn_before
        if drawn >= self.delivered + self.DEPTH * BATCH:
            return False
        if buffer.closed:
            return buffer.population > 0 if buffer.remaining is None else buffer.remaining > 0
        if buffer.pseudo_epochs > 1:
            return False
        least = {"FIFO": 1, "FIRO": buffer.watermark + 1}.get(buffer.kind, buffer.watermark)
        return buffer.population >= least

    def cut(self):
        return self.buffer.cut(prefetcher=self.prefetcher)

    def stop(self):
        self.prefetcher.stop()


class ViewLane:
    """Draws a batch ahead, as a rank does that must know whether there is another one."""

    def __init__(self, buffer, restored=None):
        self.buffer = buffer
        self.ahead = [] if restored is None else restored.pending_samples()

    def next(self):
        if not self.ahead:
            self.ahead = self.buffer.get_batch(BATCH, 5.0)
        batch, self.ahead = self.ahead, []
        return [sample_content(sample) for sample in batch]

    def settle(self):
        pass

    def cut(self):
        gathers_all = self.buffer.pseudo_epochs > 1
        if not self.ahead and (self.buffer.closed or (self.buffer.population > 12 and not gathers_all)):
            try:
                self.ahead = self.buffer.get_batch(BATCH, 5.0)
            except EndOfData:
                self.ahead = []
        return self.buffer.cut(ahead=[self.ahead] if self.ahead else [])

    def stop(self):
        pass


def script(name):
    """A recorded interleaving: puts, and batches drawn where they are there to be drawn."""
    numbers = iter(range(120))
    if "passes" in name:
        return [("put", number) for number in numbers] + [("close", None)] + [("draw", None)] * 90
    steps = [("put", next(numbers)) for _ in range(20)]
    for _ in range(20):
        # At each draw there are more than a batch and the watermark; a reservoir's puts find seen samples.
        steps += [("draw", None), *(("put", next(numbers)) for _ in range(2 if "Reservoir" in name else 4))]
    return [*steps, ("close", None)] + [("draw", None)] * 6


def run(lane, buffer, steps):
    batches = []
    for action, number in steps:
        lane.settle()
        if action == "put":
            put(buffer, number)
        elif action == "close":
            buffer.close()
        else:
            try:
                batches.append(lane.next())
            except EndOfData:
                batches.append(None)
    lane.settle()
    return batches


def write(cut, path):
    written = cut.write(path).wait()
    return written["bytes"], written["crc32c"]


@pytest.mark.parametrize("cut_at", [21, 40, -8, -5, -3])
@pytest.mark.parametrize("lane", [FastLane, ViewLane])
@pytest.mark.parametrize("name", KINDS)
def test_the_batches_after_a_kill_and_a_restart_are_those_of_the_uninterrupted_run(
    name, lane, cut_at, tmp_path
):
    steps = script(name)
    cut_at = cut_at if cut_at > 0 else len(steps) + cut_at
    buffer = make_buffer(name)
    buffer.bind(FIELDS, 2)
    source = lane(buffer)
    before = run(source, buffer, steps[:cut_at])
    known = write(source.cut(), tmp_path / "checkpoint")
    uninterrupted = run(source, buffer, steps[cut_at:])
    source.stop()

    file = CheckpointFile(tmp_path / "checkpoint", known)
    restored = file.restore_buffer(make_buffer(name))
    again = lane(restored, file)
    after = run(again, restored, steps[cut_at:])
    again.stop()
    assert after == uninterrupted
    assert any(batch is not None for batch in before + after)


def test_what_was_published_and_not_evicted_is_in_the_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    buffer = make_buffer("FIFO")
    buffer.bind(FIELDS, 2)
    for number in range(20):
        put(buffer, number)
    lane = FastLane(buffer)
    lane.next()
    write(lane.cut(), tmp_path / "checkpoint")
    lane.stop()
    arrays = safetensors.load_file(tmp_path / "checkpoint")
    numbers = np.concatenate([arrays["pending.field.u"][:, 0], arrays["field.u"][:, 0]])
    assert numbers.tolist() == list(range(4, 20)), "the batch that was delivered is trained"
    assert arrays["field.mask"].dtype == np.uint8
    assert arrays["field.v"].dtype == np.float64
    assert arrays["parameters"].shape == (arrays["samples"].shape[0], 2)
    assert np.array_equal(arrays["samples"][:, 0] * 10 + arrays["samples"][:, 2], arrays["field.u"][:, 0])


def checkpoint(tmp_path):
    buffer = make_buffer("Reservoir")
    buffer.bind(FIELDS, 2)
    for number in range(24):
        put(buffer, number)
    path = tmp_path / "checkpoint"
    return path, write(buffer.cut(ahead=[buffer.get_batch(BATCH)]), path)


def test_a_cut_needs_a_buffer_that_holds_something(tmp_path):
    with pytest.raises(TrainingBufferError, match="no sample yet"):
        make_buffer("FIFO").cut()


def test_each_flipped_bit_is_found_and_said_with_the_file_s_name(tmp_path):
    path, known = checkpoint(tmp_path)
    good = path.read_bytes()
    assert CheckpointFile.measure(path) == known
    for place in np.linspace(0, len(good) - 1, 40).astype(int):
        damaged = bytearray(good)
        damaged[place] ^= 1 << int(place) % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"checkpoint {path} is damaged: the checksum"):
            CheckpointFile(path, known)


@pytest.mark.parametrize("length", [0, 7, 8, 100, 1500])
def test_a_file_that_was_cut_short_is_found_with_and_without_its_checksum(length, tmp_path):
    path, known = checkpoint(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=f"has {length} bytes, and {known[0]} were written"):
        CheckpointFile(path, known)
    with pytest.raises(CheckpointError, match="is damaged"):
        CheckpointFile(path)


def test_a_head_that_lies_is_refused_without_its_checksum(tmp_path):
    path, _ = checkpoint(tmp_path)
    good = path.read_bytes()
    (length,) = struct.unpack("<Q", good[:8])
    head = json.loads(good[8 : 8 + length])
    changes = {
        "another number of samples": lambda head: head["field.u"].update(shape=[23, 3]),
        "no array of samples": lambda head: head.pop("samples"),
        "another version": lambda head: head["__metadata__"].update(version="9"),
        "no state": lambda head: head["__metadata__"].update(state="{}"),
        "another kind of file": lambda head: head["__metadata__"].update(format="pt"),
    }
    for what, change in changes.items():
        lie = json.loads(json.dumps(head))
        change(lie)
        text = json.dumps(lie).encode()
        text += b" " * (length - len(text))
        path.write_bytes(struct.pack("<Q", len(text)) + text + good[8 + length :])
        with pytest.raises(CheckpointError, match="is damaged"):
            CheckpointFile(path)
        assert what


def test_another_configuration_is_said_and_is_no_damage(tmp_path):
    path, known = checkpoint(tmp_path)
    like = Buffer("Reservoir", 32, watermark=8)
    with pytest.raises(UnsupportedConfiguration, match="capacity is 24; the configuration says 32"):
        CheckpointFile(path, known).restore_buffer(like)


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    path, _ = checkpoint(tmp_path)
    buffer = make_buffer("FIFO")
    buffer.bind(FIELDS, 2)
    with pytest.raises(CheckpointError, match="File exists"):
        buffer.cut().write(path)
    with pytest.raises(CheckpointError, match="No such file"):
        buffer.cut().write(tmp_path / "nowhere" / "checkpoint")
    cut = buffer.cut()
    cut.write(tmp_path / "other").wait()
    with pytest.raises(ValueError, match="written before"):
        cut.write(tmp_path / "another")


def test_pins_go_with_the_cut_or_as_samples_are_written(tmp_path):
    for write_it in (False, True):
        buffer = make_buffer("FIFO")
        buffer.bind(FIELDS, 2)
        for number in range(24):
            put(buffer, number)
        cut = buffer.cut()
        for _ in range(24):
            buffer.get(1.0)
        # The samples are gone from the population, and their slots are held by the cut.
        if write_it:
            cut.write(tmp_path / "checkpoint").wait()
        else:
            del cut
        for number in range(24, 48):
            put(buffer, number)
        assert buffer.population == 24
