"""Checkpoints of several ranks: they agree on each, and on the one that all can go on from."""

import json

import pytest
import under_mpi

PROGRAM = """
import logging, sys, time
from pathlib import Path
import numpy as np
from melissa._melissa import Buffer
from melissa.server.checkpoint.folder import CheckpointFolder
from melissa.server.checkpoint.restart import load_newest
from melissa.server.checkpoint.study_state import StudyState
from melissa.server.checkpoint.writing import CheckpointWriter, DataPlane

logging.getLogger("melissa").addHandler(logging.StreamHandler(sys.stdout))
logging.getLogger("melissa").setLevel(logging.INFO)
folder = CheckpointFolder(Path("checkpoints/melissa"))

def empty():
    return Buffer("FIFO", 8)

def filled(start, nb_samples=3):
    buffer = empty()
    buffer.bind([("u", 2, "float32")], 1)
    for step in range(start, start + nb_samples):
        buffer.put(comm.rank, step, [np.full(2, step, np.float32)], [0.5])
    return buffer

def make_writer():
    study = (lambda: StudyState(nb_resubmitted=7)) if comm.rank == 0 else None
    return CheckpointWriter(comm, folder, config_dict={}, study_epoch=1, study=study)

def progress(batch):
    return {"batches": batch, "samples_delivered": 0, "trainer_wait_s": 0.0, "seconds": 0.0,
            "training_seconds": 0.0}

def write(writer, batch, buffer=None, save_model=lambda folder: None, **options):
    buffer = filled(batch) if buffer is None else buffer
    return writer.write(batch, DataPlane(buffer, None), progress(batch), save_model, **options)

def written(writer, batch, **options):
    assert write(writer, batch, **options)
    writer.wait()
    comm.barrier()

def say_what_is_there():
    say(json.dumps({str(batch): folder.ranks(batch) for batch in folder.batches()}))

def say_what_is_loaded():
    restored = load_newest(comm, folder, empty(), lambda simulation: None, 1)
    if restored is None:
        say(json.dumps(None))
        return
    steps = [sample.time_step for sample in restored.buffer.samples()]
    say(json.dumps([restored.batch, steps, restored.study.nb_resubmitted, restored.manifest.rank]))
"""


def said(tmp_path, nb_ranks, code):
    result, texts = under_mpi.run(tmp_path, nb_ranks, "import json\n" + PROGRAM + code)
    assert result.returncode == 0, result.stdout + result.stderr
    return [[json.loads(line) for line in lines] for lines in texts], result.stdout


@pytest.mark.parametrize("nb_ranks", [2, 3])
def test_every_rank_goes_on_from_the_newest_checkpoint_that_is_whole_on_all(nb_ranks, tmp_path):
    told, log = said(
        tmp_path,
        nb_ranks,
        """
writer = make_writer()
for batch in (10, 20, 30, 40):
    written(writer, batch)
say_what_is_there()
say_what_is_loaded()
comm.barrier()
# The last rank's part of the newest is damaged; another one is not there at all.
part = folder.of_rank(40, comm.size - 1) / "buffer.safetensors"
if comm.rank == 0:
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    folder.begin(50, 0)
    folder.commit(50, 0)
comm.barrier()
say_what_is_loaded()
comm.barrier()
if comm.rank == 0:
    (folder.of_rank(30, 0) / "manifest.json").write_text("{")
comm.barrier()
say_what_is_loaded()
""",
    )
    for rank, (there, newest, older, last) in enumerate(told):
        everyone = list(range(nb_ranks))
        assert {batch: there[batch] for batch in ("30", "40")} == {"30": everyone, "40": everyone}
        assert newest == [40, [40, 41, 42], 7, rank]
        assert older == [30, [30, 31, 32], 7, rank]
        # Rank 0 removes older ones when it has written its part; another rank may not have by then.
        assert last in (None, [20, [20, 21, 22], 7, rank])
    assert f"the checkpoint after batch 40 cannot be used: rank {nb_ranks - 1}:" in log
    assert "the checkpoint after batch 30 cannot be used: rank 0:" in log


def test_a_rank_that_is_still_writing_has_all_skip_the_next_one(tmp_path):
    told, log = said(
        tmp_path,
        2,
        """
writer = make_writer()
if comm.rank == 1:
    finish = writer._finish
    writer._finish = lambda *arguments: (time.sleep(1.0), finish(*arguments))
say(json.dumps(write(writer, 10)))
while comm.rank == 0 and writer.is_busy:
    time.sleep(0.01)
say(json.dumps(write(writer, 20)))
writer.wait()
comm.barrier()
say(json.dumps(write(writer, 30)))
writer.wait()
comm.barrier()
say_what_is_there()
""",
    )
    for written_10, written_20, written_30, there in told:
        assert (written_10, written_20, written_30) == (True, False, True)
        assert there == {"10": [0, 1], "30": [0, 1]}
    assert "the checkpoint after batch 20 is skipped: another rank's is still being written" in log


def test_a_rank_without_any_sample_has_all_skip(tmp_path):
    told, log = said(
        tmp_path,
        2,
        """
say(json.dumps(write(make_writer(), 10, empty() if comm.rank == 1 else filled(0))))
""",
    )
    assert told == [[False], [False]]
    assert "the checkpoint after batch 10 is skipped: no sample has come yet" in log


def test_a_disk_that_fails_on_one_rank_costs_the_checkpoint_and_no_more(tmp_path):
    told, log = said(
        tmp_path,
        2,
        """
def full(folder):
    if comm.rank == 1:
        raise OSError(28, "No space left on device")
writer = make_writer()
written(writer, 10)
say(json.dumps(write(writer, 20, save_model=full)))
writer.wait()
comm.barrier()
say_what_is_loaded()
comm.barrier()
written(writer, 30)
say_what_is_loaded()
""",
    )
    assert [lines[0] for lines in told] == [True, False]
    for rank, (_, older, newest) in enumerate(told):
        assert older == [10, [10, 11, 12], 7, rank]
        assert newest == [30, [30, 31, 32], 7, rank]
    assert "the checkpoint after batch 20 could not be written: [Errno 28] No space left" in log


def test_a_part_that_failed_keeps_its_rank_busy_until_nobody_writes_to_it(tmp_path):
    told, _ = said(
        tmp_path,
        2,
        """
class Slow:
    # The file of the samples, on a disk that is slow.
    def __init__(self, path):
        self.path, self.end = path, time.monotonic() + 1.0
    def wait(self):
        time.sleep(max(0.0, self.end - time.monotonic()))
        self.path.write_bytes(b"samples")

class Cut:
    population, pending = 3, 0
    write = staticmethod(Slow)

class Plane(DataPlane):
    def cut(self):
        return Cut()

def full(folder):
    raise OSError(28, "No space left on device")

writer = make_writer()
if comm.rank == 1:
    assert not writer.write(10, Plane(filled(10), None), progress(10), full)
else:
    write(writer, 10)
while comm.rank == 0 and writer.is_busy:
    time.sleep(0.01)
say(json.dumps(writer.is_busy))
say(json.dumps(write(writer, 20)))
writer.wait()
comm.barrier()
say(json.dumps(sorted(path.name for path in folder.of_batch(10).iterdir())))
comm.barrier()
written(writer, 30)
say_what_is_there()
""",
    )
    assert [lines[0] for lines in told] == [False, True]
    for _, written_20, left, there in told:
        assert (written_20, left) == (False, ["rank0"])
        assert there["30"] == [0, 1]


@pytest.mark.parametrize("failing", [0, 1])
def test_checkpoints_of_which_one_rank_cannot_write_its_part_do_not_pile_up(failing, tmp_path):
    told, _ = said(
        tmp_path,
        2,
        f"""
def full(folder):
    if comm.rank == {failing}:
        raise OSError(28, "No space left on device")
writer = make_writer()
written(writer, 10)
for batch in range(20, 80, 10):
    write(writer, batch, save_model=full)
    writer.wait()
    comm.barrier()
say_what_is_there()
""",
    )
    for lines in told:
        assert lines == [{"10": [0, 1], "70": [1 - failing]}]


def test_ranks_after_different_batches_all_skip_and_say_so(tmp_path):
    told, log = said(
        tmp_path,
        2,
        """
writer = make_writer()
written(writer, 10)
# Rank 0 believes that it has this one already; rank 1 is a batch ahead.
say(json.dumps(write(writer, 10 + comm.rank)))
say(json.dumps(write(writer, 20)))
writer.wait()
comm.barrier()
say(json.dumps(write(writer, 20)))
""",
    )
    assert told == [[False, True, False]] * 2
    assert "the server's ranks are not after the same batch (rank 0 after 10, rank 1 after 11)" in log


@pytest.mark.parametrize(("kind", "is_used"), [("FIFO", True), ("FIRO", False)])
def test_a_rank_that_had_received_all_takes_samples_again_or_all_use_an_older_checkpoint(
    kind, is_used, tmp_path
):
    """A FIRO of several passes over all samples has begun them."""
    told, log = said(
        tmp_path,
        2,
        f"""
KIND, PASSES = {kind!r}, {1 if is_used else 2}

def empty():
    return Buffer(KIND, 8, pseudo_epochs=PASSES)

planned = {{"id": 0, "attempt": 1, "draw": 0, "failures": 0, "failures_of_draw": 0, "given_up": False,
            "steps_complete": 0, "words": []}}
writer = make_writer()
if comm.rank == 0:
    writer._study = lambda: StudyState(simulations=[planned])
written(writer, 10)
buffer = filled(20)
if comm.rank == 1:
    buffer.close()
    buffer.get(1.0)
written(writer, 20, buffer=buffer)
restored = load_newest(comm, folder, empty(), lambda simulation: None, 1)
say(json.dumps([restored.batch, restored.buffer.closed, len(restored.buffer)]))
""",
    )
    if is_used:
        assert told == [[[20, False, 3]], [[20, False, 2]]]
    else:
        assert told == [[[10, False, 3]], [[10, False, 3]]]
        assert "the checkpoint after batch 20 cannot be used: rank 1:" in log
        assert "has begun its 2 passes" in log


def test_another_number_of_ranks_is_refused_with_both(tmp_path):
    said(tmp_path, 2, "written(make_writer(), 10)")
    result, _ = under_mpi.run(tmp_path, 1, "import json\n" + PROGRAM + "say_what_is_loaded()")
    assert result.returncode != 0
    assert "is of a server of 2 ranks, and this one has 1" in result.stderr
