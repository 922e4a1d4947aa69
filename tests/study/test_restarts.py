"""Studies whose server is killed in the middle: the launcher starts it again, and it goes on."""

import os
import signal

import pytest

NB_SIMULATIONS, NB_TIME_STEPS = 4, 30

NOTING = """
class Server(LearningServer):
    def on_batch_start(self, batch_idx):
        self.loss_before = float(self.model.weight.abs().sum())
        with open("batches.txt", "a") as file:
            print(os.environ["MELISSA_STUDY_EPOCH"], batch_idx, repr(self.loss_before), file=file)
    def on_batch_end(self, batch_idx):
        time.sleep(0.01)
"""

SOLVER = f"""
declare()
for time_step in range({NB_TIME_STEPS}):
    send(time_step)
    time.sleep(0.02)
melissa_finalize()
"""


def newest(study):
    done = (study.output / "checkpoints" / "melissa").glob("*/rank0/manifest.json")
    return max((int(path.parts[-3]) for path in done if path.parent.name == "rank0"), default=0)


def notes(study, epoch):
    """Batch number -> sum of the model's weights before it, of one start of the server."""
    lines = [line.split() for line in study.read("batches.txt").splitlines()]
    return {int(batch): weights for start, batch, weights in lines if int(start) == epoch}


@pytest.mark.parametrize("kind", ["FIFO", "Reservoir"])
def test_a_server_that_is_killed_in_the_middle_goes_on_with_model_buffer_and_ledger(kind, study):
    study.solver(SOLVER)
    study.server("import os, time" + NOTING, base="learning")
    study.configure(
        {
            "study_options.parameter_sweep_size": NB_SIMULATIONS,
            "study_options.nb_time_steps": NB_TIME_STEPS,
            "dl_config.buffer": kind,
            "dl_config.per_server_watermark": 6,
            "dl_config.checkpoint_interval": 3,
        }
    )
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
