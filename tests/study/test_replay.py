"""Samples come in the same places among the draws after a restart: so do the batches, on every rank.

Two ranks train. Solvers send a portion of time steps when both ranks are about to train the next batch, and
these wait for it, so that each rank's publishes and draws have one order. The first start of the server runs
to the last batch and dies then, without its last checkpoint: what the second start does after an older one
is compared with what the first has done.
"""

import json

import pytest

NB_SIMULATIONS, NB_TIME_STEPS, BATCH = 3, 24, 4
ALL = NB_SIMULATIONS * NB_TIME_STEPS

SOLVER = f"""
EPOCH = os.environ["MELISSA_STUDY_EPOCH"]
declare()
for time_step in range({NB_TIME_STEPS}):
    number = SIMULATION * {NB_TIME_STEPS} + time_step
    portion = max(0, -((FIRST - 1 - number) // PORTION))
    for rank in range(2):
        wait_for(f"portion{{portion}}.{{EPOCH}}.{{rank}}")
    send(time_step)
melissa_finalize()
"""

SERVER = f"""
import json, os, pathlib, signal, time

EPOCH = os.environ["MELISSA_STUDY_EPOCH"]

class Server(LearningServer):
    def process_simulation_data(self, data, config_dict):
        # The view lane: this thread draws, a batch ahead.
        return super().process_simulation_data(data, config_dict)

    def on_train_start(self):
        for portion in range(self.batch_offset + 1):
            self.let_come(portion)
        self.wait_for(self.batch_offset)

    def on_batch_start(self, batch_idx):
        self.let_come(batch_idx)
        self.wait_for(batch_idx)

    def let_come(self, portion):
        pathlib.Path(f"portion{{portion}}.{{EPOCH}}.{{self.rank}}").touch()

    def wait_for(self, portion):
        number = min({ALL}, FIRST + portion * PORTION)
        of_simulation = (divmod(each, {NB_TIME_STEPS}) for each in range(number))
        mine = sum((simulation + step) % 2 == self.rank for simulation, step in of_simulation)
        buffer = self.buffer.native
        while buffer.metrics()["published"] < mine or (number == {ALL} and not buffer.closed):
            assert not self._ending.check(), "the study is stopped"
            time.sleep(0.005)

    def training_step(self, batch, batch_idx):
        weights = repr(float(self.unwrapped_model.weight.abs().sum()))
        with open(f"batches{{self.rank}}.txt", "a") as file:
            print(json.dumps([EPOCH, batch_idx, weights, batch[0].tolist()]), file=file)
        super().training_step(batch, batch_idx)

    def _drain(self, source, delivery, batch_idx):
        if EPOCH == "1":
            folder = pathlib.Path("checkpoints/melissa/INTERVAL")
            while not all((folder / f"rank{{rank}}").is_dir() for rank in range(2)):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._drain(source, delivery, batch_idx)
"""

# Samples that come before training begins and before each batch, to both ranks together; the buffer's keys.
# So many come that there is always a batch to draw, and a seen sample to evict.
KINDS = {
    "FIFO": (24, 8, {"buffer_size": 30, "checkpoint_interval": 5}),
    "FIRO": (24, 8, {"buffer_size": 30, "per_server_watermark": 4, "checkpoint_interval": 5}),
    "Reservoir": (16, 2, {"buffer_size": 12, "per_server_watermark": 6, "checkpoint_interval": 20}),
}


@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.long) for kind in ("FIFO", "FIRO")), "Reservoir"]
)
def test_the_batches_after_a_restart_are_those_that_would_have_come_on_both_ranks(kind, study, monkeypatch):
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    first, portion, buffer = KINDS[kind]
    interval = buffer["checkpoint_interval"]

    def filled(code):
        code = code.replace("FIRST", str(first)).replace("PORTION", str(portion))
        return code.replace("INTERVAL", f"{interval:08d}")

    study.solver(filled(SOLVER))
    study.server(filled(SERVER), base="learning")
    study.configure(
        {
            "study_options.parameter_sweep_size": NB_SIMULATIONS,
            "study_options.nb_time_steps": NB_TIME_STEPS,
            "dl_config.buffer": kind,
            "dl_config.batch_size": BATCH,
            # One client at a time.
            "launcher_config.job_limit": 2,
            "launcher_config.scheduler": "openmpi",
            "launcher_config.scheduler_arg": ["--oversubscribe"],
            "launcher_config.scheduler_arg_server": ["-n", "2"],
        }
        | {f"dl_config.{name}": value for name, value in buffer.items()}
    )
    launcher = study.start()
    # One after the other: each may take its time on a loaded machine.
    study.wait_for_log("melissa_launcher.log", "the server is started again: restart 1")
    study.wait_for_log("melissa_server_0.log", f"the server goes on after batch {interval}")
    assert study.wait(launcher).returncode == 0, study.logs()
    for rank in range(2):
        lines = [json.loads(line) for line in study.read(f"batches{rank}.txt").splitlines()]
        uninterrupted = [rest for epoch, *rest in lines if epoch == "1"]
        again = [rest for epoch, *rest in lines if epoch == "2"]
        assert again[0][0] == interval + 1
        assert len(again) >= 3
        assert again == uninterrupted[interval:], "batch numbers, weights before them, and their samples"
    assert study.balance()["declared"] == ALL
