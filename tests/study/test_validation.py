"""Validation: how long it may take, and what it may be fed with."""

import re

from studies import Study

SLOW_SERVER = """
    import ctypes
    import time


    class Batches:
        \"\"\"Any iterable serves, if it can be iterated again.\"\"\"

        def __iter__(self):
            yield from ("sleep", "hold the interpreter", "compute")


    class Server(PlainServer):
        def prepare_training_attributes(self):
            self.valid_dataloader = Batches()
            return super().prepare_training_attributes()

        def validation_step(self, batch, valid_batch_idx, batch_idx):
            start = time.monotonic()
            if batch == "sleep":
                time.sleep(4)
            elif batch == "hold the interpreter":
                ctypes.PyDLL(None).sleep(4)
            else:
                while time.monotonic() < start + 4:
                    pass
            return super().validation_step(batch, valid_batch_idx, batch_idx)
"""


def test_a_validation_may_take_longer_than_the_launcher_waits_for_a_server(study):
    study.server(SLOW_SERVER)
    # The launcher takes a server for dead that it does not hear for 2 s.
    study.configure({"launcher_config.server_timeout": 1.0, "dl_config.nb_batches_update": 3})
    study.succeed()
    study.expect_ledger(20)
    validated = [call for call in study.seen["calls"] if call.startswith("validation_step")]
    assert validated == [
        "validation_step 'sleep' 0 3",
        "validation_step 'hold the interpreter' 1 3",
        "validation_step 'compute' 2 3",
    ]


def test_batches_that_come_only_once_are_said_so(study):
    study.server(
        """
        class Server(PlainServer):
            def prepare_training_attributes(self):
                self.valid_dataloader = (batch for batch in ["the only one"])
                return super().prepare_training_attributes()
        """
    )
    study.configure({"dl_config.nb_batches_update": 1})
    study.succeed()
    assert sum("validation_step" in call for call in study.seen["calls"]) == 1
    warnings = re.findall(r"WARNING .*valid_dataloader.*", study.server_log)
    assert len(warnings) == 1
    assert "gave no batch" in warnings[0]


SWEEP = {
    "study_options.validation_sweep_size": 2,
    "dl_config.nb_batches_update": 2,
    "dl_config.buffer": "Reservoir",
    "dl_config.per_server_watermark": 10,
    # Two of the three are for validation at first.
    "launcher_config.job_limit": 4,
}


def created(study):
    """Return the parameters of each simulation by its id: of those for training, of those for validation."""
    training = re.findall(r"created client\.(\d+)\.sh with parameters \[(.*)\]\n", study.server_log)
    validation = re.findall(r"validation simulation (\d+) runs .* with parameters (.*)\n", study.server_log)
    return dict(training), dict(validation)


def test_simulations_for_validation_feed_the_dataloader_and_never_the_buffer(study):
    study.server(
        """
        class Server(PlainServer):
            def training_step(self, batch, batch_idx):
                # Training waits until all samples for validation are here.
                while len(self.valid_dataloader) < 3 and self.valid_dataloader.nb_samples < 10:
                    self.valid_dataloader.look()
                super().training_step(batch, batch_idx)

            def validation_step(self, batch, valid_batch_idx, batch_idx):
                fields, keys = batch
                assert fields.shape == (len(keys), 12)
                self.calls.append([batch_idx, valid_batch_idx, [list(map(int, key)) for key in keys]])
        """
    )
    study.configure(SWEEP)
    study.succeed()
    study.expect_ledger(20)
    assert {simulation for simulation, _ in study.counts()} == {0, 1, 2, 3}
    validated = [call for call in study.seen["calls"] if isinstance(call, list)]
    for batch_idx in {call[0] for call in validated}:
        batches = [call[2] for call in validated if call[0] == batch_idx]
        assert [len(batch) for batch in batches] == [4, 4, 2]
        keys = sorted(tuple(key) for batch in batches for key in batch)
        assert keys == [(simulation, step) for simulation in (4, 5) for step in range(5)]
    assert {call[0] for call in validated} == set(range(2, study.report["batches"] + 1, 2))
    training, validation = created(study)
    assert list(training) == ["0", "1", "2", "3"]
    assert list(validation) == ["4", "5"]
    assert len({*training.values(), *validation.values()}) == 6
    assert study.report["simulations"] == {
        "planned": 4,
        "finished": 4,
        "failed": 0,
        "resubmitted": 0,
        "validation_planned": 2,
        "validation_finished": 2,
    }


def test_training_waits_for_no_simulation_for_validation(study):
    study.solver(
        """
        declare()
        send(0)
        if SIMULATION >= 4:
            # The server's notes, written when training ends.
            wait_for("seen.json")
        send(1, 2, 3, 4)
        melissa_finalize()
        """
    )
    study.server("class Server(PlainServer):\n    def validation_step(self, *arguments): pass")
    study.configure(SWEEP)
    study.succeed()
    study.expect_ledger(20)
    assert study.report["simulations"]["validation_finished"] == 2


def test_training_parameters_are_the_same_without_simulations_for_validation(study, tmp_path):
    study.configure(SWEEP)
    study.server("class Server(PlainServer):\n    def validation_step(self, *arguments): pass")
    study.succeed()
    alone = Study(tmp_path / "alone")
    alone.succeed()
    assert created(alone)[0] == created(study)[0]


def test_whole_batches_for_validation_are_those_of_training(study):
    study.server(
        """
        class Server(LearningServer):
            def validation_step(self, batch, valid_batch_idx, batch_idx):
                inputs, fields = batch
                assert (inputs.dtype, fields.dtype) == (torch.float32, torch.float32)
                slope, time_step = inputs[:, :1], inputs[:, -1:]
                expected = slope * torch.arange(1, 13) + 100.0 * time_step + sum(b"temperature")
                torch.testing.assert_close(fields, expected)
                return super().validation_step(batch, valid_batch_idx, batch_idx)
        """,
        base="learning",
    )
    study.configure(SWEEP)
    study.succeed()
    study.expect_ledger(20)


def test_a_client_for_validation_that_dies_runs_again(study):
    study.solver(
        """
        declare()
        send(0, 1)
        if SIMULATION == 5 and ATTEMPT == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        send(2, 3, 4)
        melissa_finalize()
        """
    )
    study.server("class Server(PlainServer):\n    def validation_step(self, *arguments): pass")
    study.configure(SWEEP)
    study.succeed()
    study.expect_ledger(20)
    simulations = study.report["simulations"]
    assert (simulations["resubmitted"], simulations["validation_finished"]) == (0, 2)


def test_a_class_that_cannot_validate_is_told_so_at_once(study):
    study.server(
        """
        class Server(PlainServer): pass
        del PlainServer.validation_step
        """
    )
    study.configure(SWEEP)
    assert "validation_sweep_size is 2, but class Server" in study.fail()
