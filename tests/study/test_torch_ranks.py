"""Whole studies that two server ranks train together, with torch."""

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


@pytest.mark.parametrize("fault", FAULTS)
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
