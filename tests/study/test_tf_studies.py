"""Whole studies with TensorFlow."""

import json
import os
import signal
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytest.importorskip("h5py")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def study(study):
    study.patience = 240.0
    return study


def seen(study, rank=0):
    return json.loads((study.output / f"seen.{rank}.json").read_text())


def test_a_study_with_tensorflow_trains_every_sample(study):
    study.server(
        """
        class Server(LearningServer):
            def on_train_start(self):
                inputs = np.ones((4, 3), np.float32)
                self.valid_dataloader = [(inputs, np.ones((4, 12), np.float32))]
        """,
        base="learning_tf",
    )
    study.configure({"dl_config.nb_batches_update": 2})
    study.succeed()
    study.expect_ledger(20)
    assert seen(study)["counts"] == [1] * 20
    events = EventAccumulator(str(study.output / "tensorboard" / "gpu_0"))
    events.Reload()
    assert [event.step for event in events.Scalars("Loss/train")] == [1, 2, 3, 4, 5]
    assert [event.step for event in events.Scalars("Loss/valid")] == [2, 4]
    assert (study.output / "checkpoints" / "model.weights.h5").is_file()


@pytest.mark.parametrize("hook", ["process_simulation_data", "train"])
def test_every_way_of_samples_into_a_tensorflow_study(study, hook):
    study.server(
        {
            "process_simulation_data": """
            class Server(LearningServer):
                def process_simulation_data(self, data, config_dict):
                    inputs = np.array([*data.parameters, data.time_step], np.float32)
                    return inputs, data.data["temperature"], data.time_step

                def training_step(self, batch, batch_idx):
                    inputs, fields, time_steps = batch
                    assert all(tf.is_tensor(part) for part in batch)
                    self.learn(inputs, fields, batch_idx)
            """,
            "train": """
            from melissa.server.deep_learning import FrameworkType
            from melissa.server.deep_learning.dataset import make_dataloader

            class Server(LearningServer):
                def train(self):
                    loader = make_dataloader(FrameworkType.TENSORFLOW, self.dataset, self.batch_size)
                    for batch_idx, (inputs, fields) in enumerate(loader):
                        self.learn(inputs, fields, batch_idx)
            """,
        }[hook],
        base="learning_tf",
    )
    study.succeed()
    study.expect_ledger(20)
    assert seen(study)["counts"] == [1] * 20


# On two ranks.

NB_LONG_STEPS = 60

SLOW_SOLVER = f"""
declare()
for time_step in range({NB_LONG_STEPS}):
    send(time_step)
    time.sleep(0.05)
melissa_finalize()
"""

NOTING = """
import os, zlib

class Server(LearningServer):
    def on_batch_start(self, batch_idx):
        weights = b"".join(variable.numpy().tobytes() for variable in self.model.trainable_variables)
        with open(f"batches{self.rank}.txt", "a") as file:
            print(os.environ["MELISSA_STUDY_EPOCH"], batch_idx, zlib.crc32(weights), file=file)
"""


@pytest.fixture
def on_two_ranks(study):
    study.server(NOTING, base="learning_tf")
    study.configure(
        {
            "dl_config.batch_size": 2,
            "dl_config.buffer_size": 60,
            "launcher_config.scheduler": "openmpi",
            "launcher_config.scheduler_arg_server": ["--oversubscribe", "-n", "2"],
            "launcher_config.scheduler_arg_client": ["-n", "1"],
        }
    )
    return study


def notes(study, epoch, rank):
    """Batch number -> the weights before it, of one start of the server."""
    lines = [line.split() for line in study.read(f"batches{rank}.txt").splitlines()]
    return {int(batch): weights for start, batch, weights in lines if int(start) == epoch}


def server_rank(study, rank):
    """The process of a server rank under mpiexec."""
    wanted = f"OMPI_COMM_WORLD_RANK={rank}".encode()
    for pid in study.processes():
        folder = Path(f"/proc/{pid}")
        is_server = b"melissa.server" in (folder / "cmdline").read_bytes().split(b"\0")
        if is_server and wanted in (folder / "environ").read_bytes().split(b"\0"):
            return pid
    raise AssertionError(f"there is no server rank {rank}")


def test_two_ranks_train_one_model_of_a_file_that_uses_keras_when_it_is_imported(on_two_ranks):
    on_two_ranks.succeed()
    on_two_ranks.expect_ledger(20)
    first, second = seen(on_two_ranks, 0), seen(on_two_ranks, 1)
    assert first["weights"] == second["weights"]
    assert first["counts"] == second["counts"] == [1] * 10
    assert len(set(notes(on_two_ranks, 1, 0).values())) == 5, "each batch changes the weights"


@pytest.mark.long
def test_a_fault_of_one_rank_ends_both_with_its_cause(on_two_ranks):
    on_two_ranks.server(
        """
        class Server(LearningServer):
            def training_step(self, batch, batch_idx):
                if self.rank == 1 and batch_idx == 3:
                    raise ValueError("the pressure is negative")  # the line of the fault
                return super().training_step(batch, batch_idx)
        """,
        base="learning_tf",
    )
    told = on_two_ranks.fail()
    assert "ValueError: the pressure is negative" in told
    assert "# the line of the fault" in told
    assert "has lost the connection" not in told


@pytest.mark.long
def test_a_fault_in_a_hook_of_one_of_three_ranks_ends_all_with_the_line_of_the_fault_first(on_two_ranks):
    study = on_two_ranks
    study.configure({"launcher_config.scheduler_arg_server": ["--oversubscribe", "-n", "3"]})
    study.server(
        """
        class Server(LearningServer):
            def on_batch_end(self, batch_idx):
                if self.rank == 2 and batch_idx == 2:
                    raise ValueError("the pressure is negative")  # the line of the fault
        """,
        base="learning_tf",
    )
    told = study.fail()
    first_traceback, *more = told.split("Traceback (most recent call last)")[1:]
    assert "# the line of the fault" in first_traceback
    assert "ValueError: the pressure is negative" in first_traceback
    assert more == []


@pytest.mark.long
def test_sigterm_stops_both_ranks_in_order_although_tensorflow_would_have_it(on_two_ranks):
    study = on_two_ranks
    study.solver(SLOW_SOLVER)
    study.configure({"study_options.nb_time_steps": NB_LONG_STEPS})
    launcher = study.start()
    study.wait_until(lambda: notes(study, 1, 1), "the first batch")
    os.kill(server_rank(study, 1), signal.SIGTERM)
    # The launcher starts the server again, for it was not the launcher's signal.
    assert study.wait(launcher).returncode == 0, study.logs()
    assert "the server was ended by SIGTERM, which was not the launcher's" in study.launcher_log
    assert "the study stops early: SIGTERM came (server rank 1)" in study.server_log
    assert "SIGTERM came: the study stops" in study.read("melissa_server_1.log")


@pytest.mark.long
def test_when_a_rank_is_killed_both_go_on_from_the_newest_checkpoint(on_two_ranks):
    study = on_two_ranks
    study.solver(SLOW_SOLVER)
    study.configure({"study_options.nb_time_steps": NB_LONG_STEPS, "dl_config.checkpoint_interval": 3})
    launcher = study.start()
    checkpoints = study.output / "checkpoints" / "melissa"
    study.wait_until(lambda: len(list(checkpoints.glob("[0-9]*/rank?"))) >= 4, "two checkpoints")
    os.kill(server_rank(study, 1), signal.SIGKILL)
    result = study.wait(launcher)
    assert result.returncode == 0, study.logs()
    assert "the server is started again: restart 1" in result.stderr
    ledger = study.balance()
    assert ledger["declared"] == 4 * NB_LONG_STEPS
    assert ledger["trained"] + ledger["dropped"]["untrained"] == ledger["declared"]
    before, first, second = notes(study, 1, 0), notes(study, 2, 0), notes(study, 2, 1)
    assert first == second, "equal weights at each batch"
    assert min(first) > 3
    if min(first) in before:
        assert first[min(first)] == before[min(first)], "the model is that of the checkpoint"
