"""Whole studies that two server ranks train together, with torch."""

import signal

import pytest

NB_SIMULATIONS, NB_TIME_STEPS = 5, 5


@pytest.fixture
def study(study, monkeypatch):
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    study.server("class Server(LearningServer): pass", base="learning")
    study.configure(
        {
            "study_options.parameter_sweep_size": NB_SIMULATIONS,
            "dl_config.batch_size": 2,
            "dl_config.buffer_size": 30,
            "launcher_config.scheduler": "openmpi",
            "launcher_config.scheduler_arg_server": ["--oversubscribe", "-n", "2"],
            "launcher_config.scheduler_arg_client": ["-n", "1"],
        }
    )
    return study


@pytest.mark.parametrize(("drain", "untrained"), [("first", 1), ("all", 0)])
def test_what_a_rank_has_left_is_trained_if_asked_for(study, drain, untrained):
    # Of 25 samples rank 0 gets 13, seven batches, and rank 1 gets 12, six batches.
    study.configure({"dl_config.drain": drain})
    study.succeed()
    study.expect_ledger(NB_SIMULATIONS * NB_TIME_STEPS, untrained=untrained)
    assert "2 server ranks train together through gloo" in study.server_log
    assert "weights of the server's ranks differ" not in study.server_log


FAULTS = {
    "raise ValueError('the pressure is negative')": "ValueError: the pressure is negative",
    "return float('nan')": "training_step returned a loss of nan at batch 3",
}


@pytest.mark.parametrize(
    "fault", [fault if "raise" in fault else pytest.param(fault, marks=pytest.mark.long) for fault in FAULTS]
)
def test_a_fault_of_one_rank_ends_all_and_is_told_with_its_cause(study, fault):
    study.server(
        f"""
        class Server(LearningServer):
            def training_step(self, batch, batch_idx):
                if self.rank == 1 and batch_idx == 3:
                    {fault}  # the line of the fault
                super().training_step(batch, batch_idx)
        """,
        base="learning",
    )
    told = study.fail()
    assert FAULTS[fault] in told
    assert "has lost the connection" not in told
    if fault.startswith("raise"):
        assert "# the line of the fault" in told


DRAINING = """
import os, pathlib, signal, time

class Server(LearningServer):
    def on_batch_start(self, batch_idx):
        weights = float(self.unwrapped_model.weight.abs().sum())
        epoch = os.environ["MELISSA_STUDY_EPOCH"]
        with open(f"batches{self.rank}.txt", "a") as file:
            print(epoch, batch_idx, repr(weights), file=file)
        if self.rank == 0 and epoch == "1":
            if batch_idx == 8:
                self.wait_for_checkpoint(4)
            elif batch_idx == 9:
                self.wait_for_checkpoint(8)
                COME_TO_AN_END
    def wait_for_checkpoint(self, batch):
        text = f"checkpoint after batch {batch} is written"
        while not all(text in pathlib.Path(f"melissa_server_{rank}.log").read_text() for rank in range(2)):
            time.sleep(0.02)
"""

ENDS = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "stopped": """open("in_batch_9", "w").close()
                while self._ending.stop_reason is None:
                    time.sleep(0.02)""",
}


@pytest.mark.parametrize("end", ["killed", pytest.param("stopped", marks=pytest.mark.long)])
def test_a_server_that_ends_in_the_drain_of_all_goes_on_there_to_the_last_sample(end, study):
    """Rank 0 has ten batches, rank 1 has seven."""
    study.solver("solve(20 if SIMULATION % 2 == 0 else 14)")
    study.server(DRAINING.replace("COME_TO_AN_END", ENDS[end]), base="learning")
    study.configure(
        {
            "study_options.parameter_sweep_size": 4,
            "study_options.nb_time_steps": None,
            "dl_config.distribution": "simulation",
            "dl_config.drain": "all",
            "dl_config.batch_size": 4,
            "dl_config.checkpoint_interval": 4,
        }
    )
    launcher = study.start()
    if end == "stopped":
        study.wait_for_mark("in_batch_9")
        launcher.send_signal(signal.SIGTERM)
        assert study.wait(launcher).returncode == 128 + signal.SIGTERM, study.logs()
        launcher = study.start()
    else:
        study.wait_for_log("melissa_launcher.log", "the server is started again: restart 1")
    after = 8 if end == "killed" else 9
    study.wait_for_log("melissa_server_0.log", f"the server goes on after batch {after}")
    assert study.wait(launcher).returncode == 0, study.logs()
    study.expect_ledger(2 * 20 + 2 * 14)
    assert [rank["batches"] for rank in study.report["ranks"]] == [10, 7]
    lines = [line.split() for line in study.read("batches0.txt").splitlines()]
    first, second = ({int(batch): size for start, batch, size in lines if start == epoch} for epoch in "12")
    assert list(second) == list(range(after + 1, 11))
    if end == "killed":
        assert second[9] == first[9], "the model is that of the checkpoint"
    assert len(study.read("batches1.txt").splitlines()) == 7, "rank 1 is dry after the restart, too"
    assert "weights of the server's ranks differ" not in study.server_log
