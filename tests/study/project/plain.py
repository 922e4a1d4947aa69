"""A server of the DEFAULT framework that compares every sample with what its solver must have sent."""

import json
from collections import Counter

import numpy as np
from fields import field_values

from melissa.server.deep_learning.base_dl_server import DeepMelissaServer
from melissa.server.parameters import ParameterSamplerType


class PlainServer(DeepMelissaServer):
    """Checks and counts samples, and notes hooks; at the end ``seen.json`` has both.

    Of other ranks than 0 it is ``seen_<rank>.json``.
    """

    def __init__(self, config_dict):
        super().__init__(config_dict)
        self.set_parameter_sampler(ParameterSamplerType.RANDOM_UNIFORM, l_bounds=[0.0], u_bounds=[1.0])
        self.batches = []
        self.calls = []
        self.kinds = {}

    def prepare_training_attributes(self):
        self.calls.append("prepare_training_attributes")
        return {"weights": np.zeros(3)}, "an optimizer"

    def process_simulation_data(self, data, config_dict):
        assert list(data.data) == config_dict["study_options"]["field_names"]
        assert type(data.parameters) is list
        for name, values in data.data.items():
            self.kinds[name] = values.dtype.name
            expected = field_values(name, values.size, data.time_step, data.parameters)
            np.testing.assert_array_equal(values, expected.astype(values.dtype))
        return data.data[0], (data.simulation_id, data.time_step)

    def training_step(self, batch, batch_idx):
        fields, keys = batch
        assert fields.shape[0] == len(keys)
        self.batches.append(keys)
        self.tb_logger.log_scalar("Loss/train", 1.0 / batch_idx, batch_idx)

    def validation_step(self, batch, valid_batch_idx, batch_idx):
        self.calls.append(f"validation_step {batch!r} {valid_batch_idx} {batch_idx}")
        self.tb_logger.log_scalar("Loss/valid", 0.5, batch_idx)
        return {}

    def on_train_start(self):
        self.calls.append("on_train_start")

    def on_train_end(self):
        self.calls.append("on_train_end")
        counts = Counter(key for batch in self.batches for key in batch)
        seen = {
            "samples": [[*map(int, key), count] for key, count in sorted(counts.items())],
            "batches": [[list(map(int, key)) for key in batch] for batch in self.batches],
            "calls": self.calls,
            "kinds": self.kinds,
            "nb_time_steps": self.nb_time_steps,
            "nb_expected_batches": self.nb_expected_batches,
        }
        name = "seen.json" if self.rank == 0 else f"seen_{self.rank}.json"
        with open(name, "w") as file:
            json.dump(seen, file)

    def checkpoint(self, batch_idx, path="checkpoints"):
        self.calls.append(f"checkpoint {batch_idx}")

    def _load_model_from_checkpoint(self):
        # It has no model; a server that is asked to stop may have written a checkpoint, though.
        self.calls.append("load")

    def _setup_environment_slurm(self):
        raise AssertionError("there is no Slurm here")
