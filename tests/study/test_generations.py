"""Studies as their authors wrote them, in the style of 2023 and in today's, under a real launcher."""

import json

import pytest
import torch
from studies import Study
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CLASS_OF_2023 = """
    import time
    from collections import Counter

    from torch.utils.data import DataLoader

    from melissa.launcher.message import Ping
    from melissa.server.deep_learning.dataset import MelissaIterableDataset
    from melissa.server.deep_learning.reservoir import Reservoir
    from melissa.server.deep_learning.torch_server import TorchServer, checkpoint


    class Statistics:
        def __init__(self):
            self.statistics = []


    class Server(TorchServer, Statistics):
        def __init__(self, config):
            TorchServer.__init__(self, config)
            Statistics.__init__(self)
            self.draws = np.random.default_rng(self.study_options["seed"])
            self.per_server_watermark = 6
            self.counts = Counter()
            assert self.num_server_proc == 1 and self.config["dl_config"]["zmq_hwm"] == 10
            assert self.n_batches_update == 2 and self.nb_time_steps == 5

        def set_model(self):
            self.tb_logger.writer.add_custom_scalars({"Loss": {"both": ["Multiline", ["Loss/train"]]}})
            self.model = torch.nn.Linear(self.nb_parameters + 1, 12).to(self.device)
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-6)

        def configure_data_collection(self):
            self.buffer = Reservoir(self.buffer_size, self.per_server_watermark)
            self.dataset = MelissaIterableDataset(
                buffer=self.buffer, tb_logger=self.tb_logger, config=self.config,
                transform=self.process_simulation_data,
            )

        def draw_parameters(self):
            return list(self.draws.uniform(0.0, 1.0, size=self.nb_parameters))

        def process_simulation_data(self, msg, config):
            assert config is self.config
            x = torch.tensor(msg.parameters[-self.nb_parameters:] + [msg.time_step], dtype=torch.float32)
            y = torch.from_numpy(msg.data[0])
            self.counts[msg.simulation_id, msg.time_step] += 1
            return x, y

        def get_buffer_statistics(self):
            with self.buffer.mutex:
                population = len(self.buffer.queue)
                rows = [
                    self.buffer.queue[i].data.parameters + [self.buffer.queue[i].data.time_step]
                    for i in range(population)
                ]
                time.sleep(0.05)
                assert len(self.buffer.queue) == population
                # How often each was seen concerns those that are there.
                assert sum(self.buffer.seen_ctr.values()) == population
            return np.mean(rows, axis=0) if rows else np.zeros(self.nb_parameters + 1)

        def train(self, model):
            assert model is self.model
            dataloader = DataLoader(self.dataset, batch_size=self.batch_size, drop_last=True, num_workers=0)
            batches = 0
            for batch, (x, y) in enumerate(dataloader):
                if self.other_processes_finished(batch):
                    break
                batches += 1
                self.optimizer.zero_grad()
                loss = torch.nn.functional.mse_loss(model(x.to(self.device)), y.to(self.device))
                loss.backward()
                self.optimizer.step()
                self.tb_logger.log_scalar("Loss/train", loss.item(), batch)
                if batch % self.n_batches_update == 0:
                    self.statistics.append(self.get_buffer_statistics().tolist())
                    self.tb_logger.log_scalar("put_get", self.buffer.put_get_metric.val, batch)
                    if self.rank == 0:
                        self.launcherfd.send(self.encode_msg(Ping()))
                    checkpoint(model=model, optimizer=self.optimizer, batch=batch, loss=loss.item())
            with open("seen.json", "w") as file:
                json.dump({"statistics": self.statistics, "batches": batches,
                           "counts": sorted(self.counts.values())}, file)
"""


@pytest.fixture(scope="module")
def of_2023(tmp_path_factory):
    """Return a study of 2023 that has run to its end; several tests look at what it has left."""
    study = Study(tmp_path_factory.mktemp("2023"))
    study.server(CLASS_OF_2023, base="learning")
    study.configure(
        {
            "study_options.nb_time_steps": None,
            "study_options.num_samples": 5,
            "study_options.zmq_hwm": 10,
            "dl_config.buffer": "SimpleQueue",
            "dl_config.buffer_size": 10,
            "dl_config.n_batches_update": 2,
            "dl_config.zmq_hwm": 10,
            "dl_config.get_buffer_statistics": True,
        }
    )
    study.succeed()
    return study


def test_a_study_of_2023_trains_in_its_own_loop_with_its_own_buffer(of_2023):
    seen = of_2023.seen
    # The buffer is that of the class, a reservoir: each sample is delivered at least once.
    assert len(seen["counts"]) == 20
    assert 4 * seen["batches"] <= sum(seen["counts"]) < 4 * seen["batches"] + 4
    assert of_2023.report["batches"] == seen["batches"]
    # The loop drops what makes no whole batch; nothing shows whether its samples came before.
    assert of_2023.balance()["trained"] >= 17
    assert "the Reservoir buffer holds 10 samples, its watermark is 6" in of_2023.server_log


def test_a_study_of_2023_looks_into_its_buffer(of_2023):
    statistics = of_2023.seen["statistics"]
    assert statistics
    for *parameters, time_step in statistics:
        assert all(0.0 <= value <= 1.0 for value in parameters)
        assert 0.0 <= time_step <= 4.0


def test_a_study_of_2023_writes_its_checkpoints_with_the_keys_of_then(of_2023):
    content = torch.load(of_2023.output / "checkpoints" / "model.pt", weights_only=True)
    assert set(content) == {"batch", "loss", "model_state_dict", "optimizer_state_dict"}
    assert content["batch"] % 2 == 0
    assert content["loss"] > 0


def test_the_server_adds_two_tags_to_those_of_a_loop_of_ones_own(of_2023):
    events = EventAccumulator(str(of_2023.output / "tensorboard" / "gpu_0"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"Loss/train", "put_get", "put_time", "buffer_size"}


CLASS_OF_TODAY = """
    from melissa.server.deep_learning.base_dl_server import rank_zero_only


    class Server(LearningServer):
        def __init__(self, config_dict):
            super().__init__(config_dict)
            self.batch_size = 5
            self.buffer_size = 12
            self.per_server_watermark = 8
            self.calls = []

        def prepare_training_attributes(self):
            inputs = torch.tensor([[0.5, 0.5, 1.0], [0.25, 0.5, 2.0]])
            self.valid_dataloader = [(inputs, torch.zeros(2, 12)), (inputs, torch.ones(2, 12))]
            return super().prepare_training_attributes()

        def process_simulation_data(self, data, config_dict):
            assert config_dict["dl_config"] is self.dl_config
            x = np.array(data.parameters + [data.time_step], dtype=np.float32)
            return torch.from_numpy(x), torch.from_numpy(data.data["temperature"])

        @rank_zero_only
        def note(self, text):
            self.calls.append(text)

        def on_train_start(self):
            self.note("on_train_start")

        def on_batch_start(self, batch_idx):
            self.model.train()

        def _on_batch_end(self, batch_idx):
            super()._on_batch_end(batch_idx)
            self.note(f"_on_batch_end {batch_idx}")

        def on_batch_end(self, batch_idx):
            self.note(f"on_batch_end {batch_idx}")

        def on_validation_start(self, batch_idx):
            self.losses = []

        def validation_step(self, batch, valid_batch_idx, batch_idx):
            self.losses.append(super().validation_step(batch, valid_batch_idx, batch_idx)["loss"])
            return {"loss": self.losses[-1]}

        def on_validation_end(self, batch_idx):
            self.note(f"validated {batch_idx} on {len(self.losses)}")
            self.report_extra = {"loss": sum(self.losses) / len(self.losses)}

        def on_train_end(self):
            with open("seen.json", "w") as file:
                json.dump({"calls": self.calls, "counts": sorted(self.counts.values())}, file)
"""


def test_a_study_of_today_runs_in_the_predefined_loop(study):
    study.server(CLASS_OF_TODAY, base="learning")
    study.configure(
        {
            "dl_config.buffer": "Reservoir",
            "dl_config.per_server_watermark": 1,
            "dl_config.nb_batches_update": 2,
            "dl_config.checkpoint_interval": 3,
            "dl_config.a_key_of_the_study": 7,
        }
    )
    study.succeed()
    study.expect_ledger(20)
    batches = study.report["batches"]
    expected = ["on_train_start"]
    for batch_idx in range(1, batches + 1):
        expected += [f"on_batch_end {batch_idx}", f"_on_batch_end {batch_idx}"]
        if batch_idx % 2 == 0:
            expected.append(f"validated {batch_idx} on 2")
    assert study.seen["calls"] == expected
    assert len(study.seen["counts"]) == 20
    assert study.report["validation"]["loss"] > 0
    assert "view lane" in study.server_log
    assert "the Reservoir buffer holds 12 samples, its watermark is 8" in study.server_log
    assert torch.load(study.output / "checkpoints" / "model.pt", weights_only=True)["batch"] == batches
    events = EventAccumulator(str(study.output / "tensorboard" / "gpu_0"))
    events.Reload()
    tags = {"Loss/train", "Loss/valid", "samples_per_second", "buffer_size", "put_time", "put_get_inc"}
    assert tags <= set(events.Tags()["scalars"])
    assert json.loads(study.read("study_report.json"))["simulations"]["finished"] == 4
