"""Whole studies with TensorFlow."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytest.importorskip("h5py")


def seen(study, rank=0):
    return json.loads((study.output / f"seen.{rank}.json").read_text())


def test_a_study_with_tensorflow_trains_every_sample(study):
    study.server(
        """
        class Server(LearningServer):
            def on_train_start(self):
                inputs = np.ones((4, 3), np.float32)
                self.valid_dataloader = [(inputs, np.ones((4, 12), np.float32))]
        """,
        base="learning_tf",
    )
    study.configure({"dl_config.nb_batches_update": 2})
    study.succeed()
    study.expect_ledger(20)
    assert seen(study)["counts"] == [1] * 20
    events = EventAccumulator(str(study.output / "tensorboard" / "gpu_0"))
    events.Reload()
    assert [event.step for event in events.Scalars("Loss/train")] == [1, 2, 3, 4, 5]
    assert [event.step for event in events.Scalars("Loss/valid")] == [2, 4]
    assert (study.output / "checkpoints" / "model.weights.h5").is_file()


@pytest.mark.parametrize("hook", ["process_simulation_data", "process_simulation_batch", "train"])
def test_every_way_of_samples_into_a_tensorflow_study(study, hook):
    study.server(
        {
            "process_simulation_data": """
            class Server(LearningServer):
                def process_simulation_data(self, data, config_dict):
                    inputs = np.array([*data.parameters, data.time_step], np.float32)
                    return inputs, data.data["temperature"], data.time_step

                def training_step(self, batch, batch_idx):
                    inputs, fields, time_steps = batch
                    assert all(tf.is_tensor(part) for part in batch)
                    self.learn(inputs, fields, batch_idx)
            """,
            "process_simulation_batch": """
            class Server(LearningServer):
                def process_simulation_batch(self, batch, config_dict):
                    return {"inputs": batch.inputs, "fields": batch.fields["temperature"]}

                def training_step(self, batch, batch_idx):
                    self.learn(batch["inputs"], batch["fields"], batch_idx)
            """,
            "train": """
            from melissa.server.deep_learning import FrameworkType
            from melissa.server.deep_learning.dataset import make_dataloader

            class Server(LearningServer):
                def train(self):
                    loader = make_dataloader(FrameworkType.TENSORFLOW, self.dataset, self.batch_size)
                    for batch_idx, (inputs, fields) in enumerate(loader):
                        self.learn(inputs, fields, batch_idx)
            """,
        }[hook],
        base="learning_tf",
    )
    study.succeed()
    study.expect_ledger(20)
    assert seen(study)["counts"] == [1] * 20


def test_a_loss_that_is_nan_ends_the_study(study):
    study.server(
        """
        class Server(LearningServer):
            def training_step(self, batch, batch_idx):
                return super().training_step(batch, batch_idx) * float("nan" if batch_idx == 3 else 1)
        """,
        base="learning_tf",
    )
    assert "training_step returned a loss of nan at batch 3" in study.fail()
