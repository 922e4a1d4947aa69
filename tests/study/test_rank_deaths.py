"""One rank of a server of two dies at a named point: both are started again, and the study ends well."""

import pytest

NB_SIMULATIONS, NB_TIME_STEPS = 4, 30

SOLVER = f"""
declare()
for time_step in range({NB_TIME_STEPS}):
    send(time_step)
    time.sleep(0.01)
melissa_finalize()
"""

SERVER = """
import os, pathlib, signal, time
from melissa.server.checkpoint.manifest import Manifest
from melissa.server.environment import StudyEnvironment

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Server(PlainServer):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        self.epoch = StudyEnvironment.read().study_epoch
        with open(f"batches{self.rank}.txt", "a") as file:
            print(self.epoch, batch_idx, file=file)
        time.sleep(0.02)
        if self.rank == 1 and self.epoch == 1 and self.is_time_to_die(batch_idx):
            die()
    def is_time_to_die(self, batch_idx):
        return False
    def is_written(self):
        parts = list(pathlib.Path("checkpoints/melissa").glob("[0-9]*/rank?"))
        return any(len([other for other in parts if other.parent == part.parent]) == 2 for part in parts)
    def _load_model_from_checkpoint(self):
        pass
"""

BEFORE_THE_FIRST = SERVER.replace("return False", "return batch_idx == 2")
IN_THE_DRAIN = SERVER.replace("return False", "return self.buffer.native.closed and self.is_written()")
# Rank 0 writes its part of the second one; rank 1 has written the data and not the manifest.
WHILE_ONE_IS_WRITTEN = (
    SERVER
    + """
write = Manifest.write
def write_or_die(self, folder):
    if self.rank == 1 and self.batch > 3 and self.study_epoch == 1:
        die()
    write(self, folder)
Manifest.write = write_or_die
"""
)


def batches(study, epoch, rank):
    lines = [line.split() for line in study.read(f"batches{rank}.txt").splitlines()]
    return [int(batch) for start, batch in lines if int(start) == epoch]


@pytest.mark.parametrize(
    ("server", "begins_anew"),
    [(BEFORE_THE_FIRST, True), (WHILE_ONE_IS_WRITTEN, False), (IN_THE_DRAIN, False)],
    ids=["before the first checkpoint", "while one is written", "in the drain"],
)
def test_a_rank_dies(server, begins_anew, study, monkeypatch):
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    study.solver(SOLVER)
    study.server(server)
    study.configure(
        {
            "study_options.parameter_sweep_size": NB_SIMULATIONS,
            "study_options.nb_time_steps": NB_TIME_STEPS,
            # Two rounds of simulations, and room for more than one: the drain is long.
            "dl_config.buffer": "FIRO",
            "dl_config.buffer_size": 40,
            "dl_config.per_server_watermark": 20,
            "dl_config.checkpoint_interval": 3,
            "launcher_config.scheduler": "openmpi",
            "launcher_config.scheduler_arg": ["--oversubscribe"],
            "launcher_config.scheduler_arg_server": ["-n", "2"],
        }
    )
    result = study.run()
    assert result.returncode == 0, study.logs()
    assert "the server is started again: restart 1" in result.stderr
    ledger = study.balance()
    assert ledger["declared"] == NB_SIMULATIONS * NB_TIME_STEPS
    assert ledger["trained"] + ledger["dropped"]["untrained"] == ledger["declared"]
    first, second = (batches(study, epoch, 0) for epoch in (1, 2))
    assert second == batches(study, 2, 1)
    assert (second[0] == 1) == begins_anew
    if server is WHILE_ONE_IS_WRITTEN:
        assert second[0] == 4, "the half of a checkpoint is none"
    assert second[0] <= max(first) + 1
    assert second == list(range(second[0], second[-1] + 1))
