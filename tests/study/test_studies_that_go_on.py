"""Studies whose server is killed in the middle: the launcher starts it again, and it goes on."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

NB_SIMULATIONS, NB_TIME_STEPS = 4, 30

NOTING = """
class Server(LearningServer):
    def on_batch_start(self, batch_idx):
        self.loss_before = float(self.unwrapped_model.weight.abs().sum())
        with open(f"batches{self.rank}.txt", "a") as file:
            print(os.environ["MELISSA_STUDY_EPOCH"], batch_idx, repr(self.loss_before), file=file)
    def on_batch_end(self, batch_idx):
        time.sleep(0.01)
"""

SOLVER = f"""
declare()
for time_step in range({NB_TIME_STEPS}):
    send(time_step)
    time.sleep(0.03)
melissa_finalize()
"""


def newest(study, nb_ranks=1):
    """The batch of the newest checkpoint that is whole."""
    batches = (study.output / "checkpoints" / "melissa").glob("[0-9]*")
    whole = (path for path in batches if all((path / f"rank{rank}").is_dir() for rank in range(nb_ranks)))
    return max((int(path.name) for path in whole), default=0)


def server_rank(study, rank):
    """The process of a server rank under mpiexec."""
    wanted = f"OMPI_COMM_WORLD_RANK={rank}".encode()
    for pid in study.processes():
        folder = Path(f"/proc/{pid}")
        is_server = b"melissa.server" in (folder / "cmdline").read_bytes().split(b"\0")
        if is_server and wanted in (folder / "environ").read_bytes().split(b"\0"):
            return pid
    raise AssertionError(f"there is no server rank {rank}")


def notes(study, epoch, rank=0):
    """Batch number -> sum of the model's weights before it, of one start of the server."""
    lines = [line.split() for line in study.read(f"batches{rank}.txt").splitlines()]
    return {int(batch): weights for start, batch, weights in lines if int(start) == epoch}


def configure(study, **changes):
    study.solver(SOLVER)
    study.server("import os, time" + NOTING, base="learning")
    study.configure(
        {
            "study_options.parameter_sweep_size": NB_SIMULATIONS,
            "study_options.nb_time_steps": NB_TIME_STEPS,
            "dl_config.per_server_watermark": 6,
            "dl_config.checkpoint_interval": 3,
        }
    )
    study.configure({name.replace("__", "."): value for name, value in changes.items()})


@pytest.mark.parametrize("kind", [pytest.param("FIFO", marks=pytest.mark.long), "Reservoir"])
def test_a_server_that_is_killed_in_the_middle_goes_on_with_model_buffer_and_ledger(kind, study):
    configure(study, dl_config__buffer=kind)
    launcher = study.start()
    study.wait_until(lambda: newest(study) >= 6, "the second checkpoint")
    os.kill(study.process("melissa.server"), signal.SIGKILL)
    result = study.wait(launcher)
    assert result.returncode == 0, study.logs()
    assert "the server is started again: restart 1" in result.stderr
    study.expect_ledger(NB_SIMULATIONS * NB_TIME_STEPS)
    assert "the server goes on after batch" in study.server_log, study.server_log
    first, second = notes(study, 1), notes(study, 2)
    start = min(second)
    assert start > 6
    assert sorted(second) == list(range(start, study.report["batches"] + 1))
    if start in first:
        assert second[start] == first[start], "the model is that of the checkpoint"
    assert study.report["simulations"]["finished"] == NB_SIMULATIONS
    scalars = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = scalars.EventAccumulator(str(study.output / "tensorboard" / "gpu_0"))
    events.Reload()
    steps = [event.step for event in events.Scalars("Loss/train")]
    assert steps == list(range(1, study.report["batches"] + 1)), "the run goes on, each batch once"


def test_when_rank_0_of_two_is_killed_both_go_on_from_the_same_batch(study):
    configure(
        study,
        dl_config__buffer="Reservoir",
        launcher_config__scheduler="openmpi",
        launcher_config__scheduler_arg=["--oversubscribe"],
        launcher_config__scheduler_arg_server=["-n", "2"],
    )
    launcher = study.start()
    study.wait_until(lambda: newest(study, 2) >= 6, "the second checkpoint")
    os.kill(server_rank(study, 0), signal.SIGKILL)
    result = study.wait(launcher)
    assert result.returncode == 0, study.logs()
    assert "the server is started again: restart 1" in result.stderr
    ledger = study.balance()
    assert ledger["declared"] == NB_SIMULATIONS * NB_TIME_STEPS
    # The ranks end together: what one has left then is said.
    assert ledger["trained"] + ledger["dropped"]["untrained"] == ledger["declared"]
    assert study.report["simulations"]["finished"] == NB_SIMULATIONS
    second = [notes(study, 2, rank) for rank in range(2)]
    assert second[0] == second[1], "equal weights at each batch"
    start = min(second[0])
    assert start > 6
    first = notes(study, 1)
    if start in first:
        assert second[0][start] == first[start], "the model is that of the checkpoint"


VALIDATING = (
    "import json, os, time"
    + NOTING
    + """
    def on_validation_start(self, batch_idx):
        self.validated = []
    def validation_step(self, batch, valid_batch_idx, batch_idx):
        self.validated += batch[0][:, [0, 2]].tolist()
        return super().validation_step(batch, valid_batch_idx, batch_idx)
    def on_validation_end(self, batch_idx):
        with open("validated.txt", "a") as file:
            print(json.dumps([int(os.environ["MELISSA_STUDY_EPOCH"]), sorted(self.validated)]), file=file)
"""
)

# Of the simulations for validation, 4 sends all at once, 5 waits in the middle.
VALIDATION_SOLVER = f"""
declare()
for time_step in range({NB_TIME_STEPS}):
    send(time_step)
    if SIMULATION == 5 and time_step == 3:
        wait_for("may_go_on")
    time.sleep(0.03 if SIMULATION < 4 else 0.0)
melissa_finalize()
"""


@pytest.mark.parametrize("nb_ranks", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_simulation_for_validation_that_is_in_the_checkpoint_does_not_run_again(nb_ranks, study):
    study.solver(VALIDATION_SOLVER)
    study.server(VALIDATING, base="learning")
    study.configure(
        {
            "study_options.parameter_sweep_size": NB_SIMULATIONS,
            "study_options.validation_sweep_size": 2,
            "study_options.nb_time_steps": NB_TIME_STEPS,
            "dl_config.per_server_watermark": 6,
            "dl_config.nb_batches_update": 3,
            "dl_config.drain": "all",
        }
    )
    if nb_ranks > 1:
        study.configure(
            {
                "launcher_config.scheduler": "openmpi",
                "launcher_config.scheduler_arg": ["--oversubscribe"],
                "launcher_config.scheduler_arg_server": ["-n", str(nb_ranks)],
            }
        )
    launcher = study.start()

    def is_saved():
        # It may be removed meanwhile, when newer ones are there.
        manifest = study.read(f"checkpoints/melissa/{newest(study, nb_ranks):08d}/rank0/manifest.json")
        known = json.loads(manifest)["study"]["validation"]["simulations"] if manifest else []
        return any((each["id"], each["status"]) == (4, "finished") for each in known)

    study.wait_until(is_saved, "a checkpoint with all of simulation 4")
    os.kill(server_rank(study, 0) if nb_ranks > 1 else study.process("melissa.server"), signal.SIGKILL)
    study.set_mark("may_go_on")
    assert study.wait(launcher).returncode == 0, study.logs()
    study.expect_ledger(NB_SIMULATIONS * NB_TIME_STEPS)
    assert study.report["simulations"]["validation_finished"] == 2
    drawn = dict(re.findall(r"validation simulation (.) runs .* with parameters (.*)\n", study.server_log))
    assert sorted(drawn) == ["4", "5"]
    assert "of 2 simulations for it 1 have to run" in study.server_log
    # That of the second start, which counts all simulations of before.
    assert study.server_log.count("reception is over: ") == 1
    assert study.server_log.count("validation simulation 4 runs") == 1
    assert "validation simulation 4 is run again" not in study.server_log
    assert study.server_log.count("validation simulation 5 is run again after the restart") == 1
    lines = [json.loads(line) for line in study.read("validated.txt").splitlines()]
    slopes = {number: float(words.split(", ")[0]) for number, words in drawn.items()}
    second = [validated for epoch, validated in lines if epoch == 2]
    everything = sorted([slopes[number], step] for number in "45" for step in range(NB_TIME_STEPS))
    of_four = [pair for pair in everything if pair[0] == slopes["4"]]
    np.testing.assert_allclose(second[-1], everything, rtol=1e-6)
    assert len(second[0]) >= len(of_four), "it is there from the first validation on"


def test_a_study_that_is_told_to_end_goes_on_where_it_was_when_it_is_started_again(study):
    configure(
        study,
        dl_config__buffer="Reservoir",
        dl_config__checkpoint_interval=10_000,
        launcher_config__scheduler="openmpi",
        launcher_config__scheduler_arg=["--oversubscribe"],
        launcher_config__scheduler_arg_server=["-n", "2"],
    )
    launcher = study.start()
    study.wait_until(lambda: len(notes(study, 1, rank=1)) > 8, "some batches")
    launcher.send_signal(signal.SIGTERM)
    assert study.wait(launcher).returncode == 128 + signal.SIGTERM, study.logs()
    batch = newest(study, 2)
    assert batch == max(notes(study, 1)), "the last batch, and no other, has a checkpoint"
    result = study.wait(study.start())
    assert result.returncode == 0, study.logs()
    assert min(notes(study, 2)) == batch + 1
    ledger = study.balance()
    assert ledger["declared"] == NB_SIMULATIONS * NB_TIME_STEPS
    assert ledger["trained"] + ledger["dropped"]["untrained"] == ledger["declared"]


LONG_STEP = NOTING.replace(
    "time.sleep(0.01)",
    """time.sleep(0.01)
        if batch_idx == 5 and os.environ["MELISSA_STUDY_EPOCH"] == "1" and self.rank == RANK:
            open("in_the_step", "w").close()
            while not os.path.exists("step_may_end"):
                time.sleep(0.02)""",
)


@pytest.mark.parametrize(("nb_ranks", "rank"), [pytest.param(1, 0, marks=pytest.mark.long), (2, 1)])
def test_a_step_that_is_longer_than_a_server_has_for_its_end_costs_no_checkpoint(nb_ranks, rank, study):
    """The launcher waits for the step, whichever rank is in it."""
    several = {
        "launcher_config__scheduler": "openmpi",
        "launcher_config__scheduler_arg": ["--oversubscribe"],
        "launcher_config__scheduler_arg_server": ["-n", str(nb_ranks)],
    }
    configure(study, dl_config__checkpoint_interval=10_000, **(several if nb_ranks > 1 else {}))
    study.server("import os, time" + LONG_STEP.replace("RANK", str(rank)), base="learning")
    study.launcher_constants = {"STOP_TIMEOUT": 1.0}
    launcher = study.start()
    study.wait_for_mark("in_the_step")
    launcher.send_signal(signal.SIGINT)
    study.wait_for_log(
        "melissa_launcher.log", "the server ends its training step, then writes a checkpoint: it has"
    )
    study.set_mark("step_may_end")
    result = study.wait(launcher)
    assert result.returncode == 128 + signal.SIGINT, study.logs()
    assert "a second signal ends all at once" in result.stdout
    # Several ranks have agreed on the next batch before a step begins.
    assert newest(study, nb_ranks) == 5 + (nb_ranks > 1)
    assert study.wait(study.start()).returncode == 0, study.logs()
    assert min(notes(study, 2)) == 6 + (nb_ranks > 1)
    ledger = study.balance()
    assert ledger["declared"] == NB_SIMULATIONS * NB_TIME_STEPS
    assert ledger["trained"] + ledger["dropped"]["untrained"] == ledger["declared"]
