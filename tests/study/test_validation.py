"""Validation: how long it may take, and what it may be fed with."""

import re


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
