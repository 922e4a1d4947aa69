"""A server that is killed and started again goes on from its newest checkpoint."""

import json
import signal
import threading
import time

import pytest
from server_process import CONFIGURATION, STUDY, ServerProcess

from melissa.launcher.message import Finished, SubmitClient

SIMULATIONS, STEPS, BATCH = 6, 40, 4
ALL = {(simulation, step) for simulation in range(SIMULATIONS) for step in range(STEPS)}

OPTIONS = {
    "study_options": CONFIGURATION["study_options"]
    | {"parameter_sweep_size": SIMULATIONS, "nb_time_steps": STEPS},
    "launcher_config": {"job_limit": 4, "server_timeout": 5.0},
}

# Notes what is trained, and kills its process at a point that the test names.
DYING = (
    STUDY.replace(
        "        return data.data",
        "        self.drawn.append((data.simulation_id, data.time_step))\n        return data.data",
    ).replace("        pass\n    def checkpoint", "        self.train_and_die(batch_idx)\n    def checkpoint")
    + """
    drawn = []
    def train_and_die(self, batch_idx):
        from melissa.server.environment import StudyEnvironment
        batch, self.drawn[:self.batch_size] = self.drawn[:self.batch_size], []
        epoch = StudyEnvironment.read().study_epoch
        with open("trained.txt", "a") as file:
            print(epoch, batch_idx, batch, file=file)
        time.sleep(0.005)
        def newest():
            done = pathlib.Path("checkpoints/melissa").glob("*/rank0")
            return max((int(path.parent.name) for path in done), default=0)
        if epoch == 1 and self.is_time_to_die(batch_idx, newest):
            os.kill(os.getpid(), signal.SIGKILL)
"""
).replace("import time\n", "import os, pathlib, signal, time\n", 1)


def dying(condition, before=""):
    return (
        before + DYING + f"\n    def is_time_to_die(self, batch_idx, newest):\n        return {condition}\n"
    )


BETWEEN_TWO = "newest() >= 10 and batch_idx % 5 == 2"


# The data of a checkpoint are there, its manifest is not, and BEFORE others are whole.
DIES_WHILE_WRITING = """
import os, pathlib, signal
from melissa.server.checkpoint.manifest import Manifest
from melissa.server.environment import StudyEnvironment
write = Manifest.write
def write_or_die(self, folder):
    nb_whole = len(list(pathlib.Path("checkpoints/melissa").glob("*/rank0")))
    if nb_whole == BEFORE and StudyEnvironment.read().study_epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, folder)
Manifest.write = write_or_die
"""


@pytest.fixture
def start(tmp_path):
    started = []

    def start(**options):
        started.append(ServerProcess(tmp_path, nb_steps=STEPS, **(OPTIONS | options)))
        return started[-1]

    yield start
    for server in started:
        server.close()


def kind_of_buffer(kind, **changes):
    return {
        "dl_config": {"batch_size": BATCH, "tensorboard": False, "checkpoint_interval": 5} | kind | changes
    }


KINDS = {
    "FIFO": {"buffer": "FIFO", "buffer_size": 16},
    "passes": {
        "buffer": "FIRO",
        "buffer_size": SIMULATIONS * STEPS,
        "per_server_watermark": 4,
        "pseudo_epochs": 2,
    },
    "Reservoir": {"buffer": "Reservoir", "buffer_size": 16, "per_server_watermark": 8},
}


def trained(folder, epoch):
    """Batch number -> samples, of one start of the server."""
    batches = {}
    for line in (folder / "out" / "trained.txt").read_text().splitlines():
        number, batch, samples = line.split(" ", 2)
        if int(number) == epoch:
            batches[int(batch)] = [tuple(sample) for sample in json.loads(samples.translate(ROUND))]
    return batches


ROUND = str.maketrans("()", "[]")


def newest_of(folder):
    return max(int(path.parent.name) for path in (folder / "out/checkpoints/melissa").glob("*/rank0"))


def die(server):
    assert server.serve() is None
    assert server.end() == -signal.SIGKILL


def finish(server):
    server.serve()
    assert server.end() == 0, server.stderr
    (finished,) = server.of(Finished)
    ledger = finished.report["ledger"]
    assert ledger["declared"] == ledger["trained"] == SIMULATIONS * STEPS, server.log
    assert finished.report["simulations"]["finished"] == SIMULATIONS
    return finished.report


def after_the_restart(folder, report, batch):
    """The batches of the second start; all counters go on after `batch`."""
    first, second = trained(folder, 1), trained(folder, 2)
    assert min(second) == batch + 1
    assert sorted(second) == list(range(batch + 1, max(second) + 1))
    assert report["batches"] == max(second)
    kept = {number: samples for number, samples in first.items() if number <= batch}
    everything = [sample for samples in (kept | second).values() for sample in samples]
    assert set(everything) == ALL
    assert report["samples_delivered"] == len(everything)
    return second, everything


@pytest.mark.parametrize("kind", KINDS)
def test_killed_between_two_checkpoints_it_goes_on_from_the_newest(kind, start, tmp_path):
    options = kind_of_buffer(KINDS[kind])
    die(start(study=dying(BETWEEN_TWO), **options))
    newest = newest_of(tmp_path)
    server = start(epoch=2, study=dying("False"), **options)
    report = finish(server)
    assert f"the server goes on after batch {newest}" in server.log
    _, everything = after_the_restart(tmp_path, report, newest)
    if "Reservoir" not in kind:
        assert len(everything) == len(ALL) * (2 if kind == "passes" else 1)


def test_killed_before_the_first_checkpoint_it_begins_anew(start, tmp_path):
    options = kind_of_buffer(KINDS["FIFO"])
    die(start(study=dying("batch_idx == 3"), **options))
    server = start(epoch=2, study=dying("False"), **options)
    report = finish(server)
    assert "there is no checkpoint to go on from: the study begins anew" in server.log
    after_the_restart(tmp_path, report, 0)


@pytest.mark.parametrize("nb_before", [0, 1])
def test_killed_while_a_checkpoint_is_written_it_goes_on_from_the_one_before(nb_before, start, tmp_path):
    options = kind_of_buffer(KINDS["Reservoir"])
    study = dying("bool(time.sleep(0.02))", DIES_WHILE_WRITING.replace("BEFORE", str(nb_before)))
    die(start(study=study, **options))
    (half,) = (tmp_path / "out/checkpoints/melissa").glob("*/rank0.new")
    left = newest_of(tmp_path) if nb_before else 0
    assert left < int(half.parent.name)
    server = start(epoch=2, study=dying("False"), **options)
    report = finish(server)
    after_the_restart(tmp_path, report, left)
    assert not half.exists()


def test_killed_in_the_drain_it_trains_what_is_left(start, tmp_path):
    # The buffer holds everything, so that training begins to drain when all has come.
    options = kind_of_buffer({"buffer": "FIRO", "buffer_size": 300, "per_server_watermark": 230})
    study = dying("not self._is_receiving and newest() > 0 and batch_idx % 5 == 2")
    die(start(study=study, **options))
    newest = newest_of(tmp_path)
    server = start(epoch=2, study=dying("False"), **options)
    report = finish(server)
    assert server.of(SubmitClient) == [], "nothing was incomplete"
    _, everything = after_the_restart(tmp_path, report, newest)
    assert len(everything) == len(ALL)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(start, tmp_path):
    options = kind_of_buffer(KINDS["FIFO"])
    die(start(study=dying(BETWEEN_TWO), **options))
    checkpoints = tmp_path / "out/checkpoints/melissa"
    newest, older = sorted((int(path.parent.name) for path in checkpoints.glob("*/rank0")), reverse=True)[:2]
    damaged = checkpoints / f"{newest:08d}" / "rank0" / "buffer.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    server = start(epoch=2, study=dying("False"), **options)
    report = finish(server)
    assert f"the checkpoint after batch {newest} cannot be used" in server.log
    assert "buffer.safetensors is damaged: the checksum" in server.log
    after_the_restart(tmp_path, report, older)


def test_a_restart_under_another_buffer_is_refused_with_both_figures(start):
    die(start(study=dying(BETWEEN_TWO), **kind_of_buffer(KINDS["FIFO"])))
    server = start(epoch=2, study=dying("False"), **kind_of_buffer(KINDS["FIFO"], buffer_size=20))
    server.serve()
    assert server.end() == 1
    assert "capacity is 16; the configuration says 20" in server.log


def test_sigterm_writes_a_checkpoint_before_the_end(start, tmp_path):
    options = kind_of_buffer(KINDS["Reservoir"], checkpoint_interval=100_000)
    server = start(study=dying("False"), pause=0.02, **options)
    server.serve(until=lambda message: getattr(message, "values", {}).get("batches", 0) > 20)
    server.process.send_signal(signal.SIGTERM)
    server.serve()
    assert server.end() == 128 + signal.SIGTERM
    last = max(trained(tmp_path, 1))
    assert f"checkpoint after batch {last} is written" in server.log
    again = start(epoch=2, study=dying("False"), **options)
    report = finish(again)
    after_the_restart(tmp_path, report, last)


def test_sigterm_before_the_watermark_keeps_what_has_come(start, tmp_path):
    options = kind_of_buffer({"buffer": "FIRO", "buffer_size": 300, "per_server_watermark": 230})
    server = start(study=dying("False"), pause=0.05, **options)
    server.serve(until=lambda message: getattr(message, "values", {}).get("population", 0) > 20)
    server.process.send_signal(signal.SIGTERM)
    server.serve()
    assert server.end() == 128 + signal.SIGTERM
    assert "checkpoint after batch 0 is written" in server.log
    again = start(epoch=2, study=dying("False"), **options)
    after_the_restart(tmp_path, finish(again), 0)
    assert "the server goes on after batch 0" in again.log


def test_sigusr1_writes_a_checkpoint_at_the_next_batch(start, tmp_path):
    options = kind_of_buffer(KINDS["Reservoir"], checkpoint_interval=100_000)
    server = start(study=dying("False"), pause=0.01, **options)
    server.serve(until=lambda message: getattr(message, "values", {}).get("batches", 0) > 5)
    server.process.send_signal(signal.SIGUSR1)
    finish(server)
    written = [line for line in server.log.splitlines() if "is written: " in line]
    assert len(written) == 2, server.log  # and the one at the end


SLOW_DISK = """
import time
from melissa.server.checkpoint.manifest import Manifest
write = Manifest.write
Manifest.write = lambda self, folder: (time.sleep(1.0), write(self, folder))
"""


def test_sigusr1_while_a_checkpoint_is_written_has_another_one_written_afterwards(start):
    options = kind_of_buffer(KINDS["FIFO"], checkpoint_interval=100_000)
    server = start(study=dying("bool(time.sleep(0.1))", before=SLOW_DISK), **options)
    server.serve(until=lambda message: getattr(message, "values", {}).get("batches", 0) > 5)
    server.process.send_signal(signal.SIGUSR1)
    threading.Timer(0.5, server.process.send_signal, args=(signal.SIGUSR1,)).start()
    finish(server)
    written = [line for line in server.log.splitlines() if "is written: " in line]
    assert len(written) == 3, server.log  # and the one at the end


def test_sigusr1_in_a_loop_of_the_study_s_own_is_said_to_do_nothing(start):
    study = dying("bool(time.sleep(0.05))") + OWN_LOOP
    server = start(study=study, **kind_of_buffer(KINDS["FIFO"]))
    server.serve(until=lambda message: getattr(message, "values", {}).get("batches", 0) > 2)
    server.process.send_signal(signal.SIGUSR1)
    finish(server)
    assert "a checkpoint is written when that calls checkpoint_state" in server.log
    assert "after the next batch" not in server.log


def test_a_new_study_in_the_same_folder_forgets_the_checkpoints_of_the_one_before(start, tmp_path):
    options = kind_of_buffer(KINDS["FIFO"])
    finish(start(study=dying("False"), **options))
    (tmp_path / "out/checkpoints/mine.txt").write_text("a user's file")
    old = set((tmp_path / "out/checkpoints/melissa").iterdir())
    server = start(study=dying("batch_idx == 2"), **options)
    die(server)
    assert old
    assert not any(path.exists() for path in old)
    assert (tmp_path / "out/checkpoints/mine.txt").exists()


OWN_LOOP = """
    def train(self):
        batch, batch_idx = [], self.batch_offset
        for _ in self.dataset:
            batch.append(_)
            if len(batch) == self.batch_size:
                batch_idx += 1
                self.train_and_die(batch_idx)
                batch = []
                if batch_idx % 5 == 0:
                    self.checkpoint_state()
"""


def test_a_loop_of_the_study_s_own_goes_on_when_it_saves_its_state(start, tmp_path):
    options = kind_of_buffer(KINDS["FIFO"])
    die(start(study=dying(BETWEEN_TWO) + OWN_LOOP, **options))
    newest = newest_of(tmp_path)
    server = start(epoch=2, study=dying("False") + OWN_LOOP, **options)
    report = finish(server)
    _, everything = after_the_restart(tmp_path, report, newest)
    assert len(everything) == len(ALL)


def test_two_checkpoints_are_kept(start, tmp_path):
    finish(start(study=dying("bool(time.sleep(0.02))"), **kind_of_buffer(KINDS["FIFO"])))
    kept = sorted(path.name for path in (tmp_path / "out/checkpoints/melissa").iterdir())
    assert len(kept) == 2
    assert kept[-1] == f"{max(trained(tmp_path, 1)):08d}"


@pytest.fixture(autouse=True)
def in_time():
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 60
