"""Validation: how long it may take, and what it may be fed with."""

import re

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
