"""Whole studies: a server in this process, clients in threads, real connections between them."""

import json
import logging
import sys
import threading
import time

import numpy as np
import pytest
import torch
from played_launcher import KEY, PlayedLauncher, send_ramp
from torch.utils.data import DataLoader

from melissa.exceptions import (
    ConfigurationFileError,
    FatalError,
    FaultToleranceError,
    MelissaError,
    TrainingError,
    UnsupportedConfiguration,
)
from melissa.launcher.message import Register
from melissa.server.deep_learning.base_dl_server import DeepMelissaServer
from melissa.server.deep_learning.dataset import MelissaIterableDataset
from melissa.server.deep_learning.reservoir import FIRO, Reservoir
from melissa.server.deep_learning.torch_server import TorchServer, checkpoint
from melissa.server.link import install_link
from melissa.server.parameters import ParameterSamplerType

NB_SIMULATIONS, NB_STEPS, SIZE = 6, 5, 8


def configuration(**changes):
    """A configuration; changes are "section.key" with "__" for the dot."""
    config = {
        "study_options": {
            "field_names": ["u"],
            "parameter_sweep_size": NB_SIMULATIONS,
            "nb_parameters": 2,
            "nb_time_steps": NB_STEPS,
        },
        "dl_config": {"batch_size": 4, "buffer_size": 20, "per_server_watermark": 8, "buffer": "FIRO"},
        "launcher_config": {"job_limit": 4, "server_timeout": 5.0},
        "client_config": {"executable_command": "./solve"},
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            config[section][key] = value
        else:
            config[section] = value
    return config


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Run a study of a class; returns (server, launcher)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text(KEY.hex())
    monkeypatch.setenv("MELISSA_LAUNCHER_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("MELISSA_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("MELISSA_STUDY_EPOCH", "1")
    monkeypatch.setenv("MELISSA_OUTPUT_DIR", str(tmp_path))

    def play(cls, solver=None, config=None, launcher=None):
        def ramp(client, parameters, simulation_id, attempt):
            send_ramp(client, parameters, NB_STEPS, SIZE)

        launcher = launcher or PlayedLauncher(solver or ramp)
        install_link(launcher)
        server = cls(config or configuration())
        if server._parameter_sampler is None:
            server.set_parameter_sampler(ParameterSamplerType.RANDOM_UNIFORM, l_bounds=[0.0], u_bounds=[1.0])
        play.server, play.launcher = server, launcher
        server.start()
        return server, launcher

    yield play
    install_link(None)


def check_ledger(report, declared=NB_SIMULATIONS * NB_STEPS):
    ledger = report["ledger"]
    assert ledger["declared"] == declared
    assert ledger["declared"] == ledger["trained"] + sum(ledger["dropped"].values())
    return ledger


class Recorder:
    """Hooks that note that they were called."""

    def prepare_training_attributes(self):
        self.calls = ["prepare_training_attributes"]
        self.batches = []
        model = torch.nn.Linear(3, SIZE)
        return model, torch.optim.SGD(model.parameters(), lr=1e-9)

    def on_train_start(self):
        self.calls.append("on_train_start")

    def on_train_end(self):
        self.calls.append("on_train_end")

    def on_batch_start(self, batch_idx):
        self.calls.append(f"on_batch_start {batch_idx}")

    def on_batch_end(self, batch_idx):
        self.calls.append(f"on_batch_end {batch_idx}")

    def training_step(self, batch, batch_idx):
        self.calls.append(f"training_step {batch_idx}")
        self.batches.append(batch)

    def on_validation_start(self, batch_idx):
        self.calls.append(f"on_validation_start {batch_idx}")

    def validation_step(self, batch, valid_batch_idx, batch_idx):
        self.calls.append(f"validation_step {valid_batch_idx} {batch_idx}")
        return {"loss": 0.0}

    def on_validation_end(self, batch_idx):
        self.calls.append(f"on_validation_end {batch_idx}")

    def checkpoint(self, batch_idx, path="checkpoints"):
        self.calls.append(f"checkpoint {batch_idx}")


class Torch(Recorder, TorchServer):
    pass


class Plain(Recorder, DeepMelissaServer):
    def prepare_training_attributes(self):
        Recorder.prepare_training_attributes(self)
        return "model", "optimizer"

    def process_simulation_data(self, data, config_dict):
        return np.array([*data.parameters, data.time_step]), data.data["u"], data.simulation_id

    def _setup_environment_slurm(self):
        raise AssertionError("not asked for")

    def _load_model_from_checkpoint(self):
        raise AssertionError("not asked for")


# The study as a whole.


def test_every_step_is_trained_once_and_the_report_says_so(play, tmp_path, log):
    server, launcher = play(Torch)
    ledger = check_ledger(launcher.report)
    assert ledger["trained"] == NB_SIMULATIONS * NB_STEPS
    assert launcher.report == json.loads((tmp_path / "study_report.json").read_text())
    assert launcher.report["simulations"] == {"planned": 6, "finished": 6, "failed": 0, "resubmitted": 0}
    assert launcher.report["samples_delivered"] == 30
    assert launcher.report["samples_received"] == 30
    assert launcher.report["batches"] == server.nb_expected_batches == 8
    assert server.finished_groups == set(range(6))
    assert server.current_sample_count == 30
    assert "Server finalizing with status 0" in log.text
    assert "the trainer waited for data" in log.text
    assert launcher.failures == []
    assert not server._is_receiving


def test_the_lines_that_tools_parse_are_there(play, log):
    play(Torch)
    lines = [record.getMessage() for record in log.records if record.levelno == logging.INFO]
    created = [line for line in lines if line.startswith("created client.")]
    assert [line.split()[1] for line in created] == [f"client.{i}.sh" for i in range(6)]
    assert sorted(line for line in lines if "has finished sending" in line) == [
        f"sim-id={i} has finished sending" for i in range(6)
    ]


def test_hooks_are_called_in_their_order(play):
    class Validated(Torch):
        def on_train_start(self):
            super().on_train_start()
            self.valid_dataloader = ["a", "b"]

    config = configuration(dl_config__nb_batches_update=3, dl_config__checkpoint_interval=4)
    server, _ = play(Validated, config=config)
    expected = ["prepare_training_attributes", "on_train_start"]
    for batch_idx in range(1, 9):
        expected += [f"{name} {batch_idx}" for name in ("on_batch_start", "training_step", "on_batch_end")]
        if batch_idx % 3 == 0:
            expected += [
                f"on_validation_start {batch_idx}",
                f"validation_step 0 {batch_idx}",
                f"validation_step 1 {batch_idx}",
                f"on_validation_end {batch_idx}",
            ]
        if batch_idx % 4 == 0:
            expected.append(f"checkpoint {batch_idx}")
    assert server.calls == [*expected, "on_train_end"]


def test_training_starts_before_the_watermark_is_waited_for(play):
    class Early(Torch):
        def on_train_start(self):
            super().on_train_start()
            self.population_at_start = len(self.buffer)

        def on_batch_start(self, batch_idx):
            super().on_batch_start(batch_idx)
            self.population_at_first = getattr(self, "population_at_first", len(self.buffer))

    def slow(client, parameters, simulation_id, attempt):
        time.sleep(0.2)
        send_ramp(client, parameters, NB_STEPS, SIZE)

    server, _ = play(Early, slow)
    assert server.population_at_start < 8
    assert server.calls.count("on_train_start") == 1


def test_a_class_without_hooks_for_data_gets_inputs_and_field_as_tensors(play, log):
    server, _ = play(Torch)
    seen = set()
    for inputs, field in server.batches:
        assert inputs.dtype == field.dtype == torch.float32
        assert inputs.shape == (len(inputs), 3)
        assert field.shape == (len(inputs), SIZE)
        for row, values in zip(inputs, field, strict=True):
            assert torch.allclose(values, torch.full((SIZE,), 1000 * row[0] + row[2]), rtol=1e-5)
            seen.add((round(float(row[0]), 4), int(row[2])))
    assert len(seen) == 30
    assert "fast lane" in log.text


def test_process_simulation_data_gets_views_with_what_was_drawn(play, log):
    class View(Torch):
        def process_simulation_data(self, data, config_dict):
            assert config_dict is self.config_dict
            assert type(data.parameters) is list
            assert data.data["u"] is data.data[0]
            self.drawn = getattr(self, "drawn", {}) | {data.simulation_id: data.parameters}
            inputs = torch.tensor([*data.parameters[-2:], data.time_step], dtype=torch.float32)
            return inputs, torch.from_numpy(data.data["u"])

    server, launcher = play(View)
    assert "view lane" in log.text
    assert {tuple(inputs.shape) for inputs, _ in server.batches} == {(4, 3), (2, 3)}
    for simulation_id, drawn in server.drawn.items():
        assert [float(token) for token in launcher.tokens[simulation_id][0]] == drawn
    check_ledger(launcher.report)


def test_process_simulation_batch_gets_whole_batches(play):
    class Fast(Torch):
        def process_simulation_batch(self, batch, config_dict):
            return {"x": batch.parameters, "y": batch.fields["u"], "sims": batch.simulation_ids}

    server, _ = play(Fast)
    assert all(isinstance(batch["x"], torch.Tensor) for batch in server.batches)
    assert sorted(int(i) for batch in server.batches for i in batch["sims"]) == sorted(list(range(6)) * 5)


def test_plain_batches_are_tuples_of_arrays_and_lists(play):
    server, launcher = play(Plain)
    inputs, fields, simulations = server.batches[0]
    assert (inputs.shape, fields.shape) == ((4, 3), (4, SIZE))
    assert isinstance(simulations, list)
    check_ledger(launcher.report)


def test_several_fields_come_by_name(play):
    def two_fields(client, parameters, simulation_id, attempt):
        client.init("p", 3, "float64")
        client.init("u", SIZE, "float64")
        for step in range(NB_STEPS):
            client.send("u", np.full(SIZE, step))
            client.send("p", np.full(3, -step))
        client.finalize()

    server, _ = play(Torch, two_fields, configuration(study_options__field_names=["u", "p"]))
    _, fields = server.batches[0]
    assert list(fields) == ["u", "p"]
    assert fields["p"].shape == (4, 3)
    assert torch.equal(fields["u"][:, 0], -fields["p"][:, 0])


@pytest.mark.parametrize("kind", ["FIFO", "Reservoir", "BatchReservoir"])
def test_every_kind_of_buffer_trains_every_step(play, kind):
    server, launcher = play(Torch, config=configuration(dl_config__buffer=kind))
    assert check_ledger(launcher.report)["trained"] == 30
    if kind == "FIFO":
        assert server.nb_expected_batches == 8
    else:
        assert server.nb_expected_batches is None


def test_pseudo_epochs_deliver_each_sample_so_often(play):
    config = configuration(dl_config__pseudo_epochs=3, dl_config__buffer_size=30)
    server, launcher = play(Torch, config=config)
    assert launcher.report["samples_delivered"] == 90
    assert launcher.report["batches"] == server.nb_expected_batches == 23
    assert check_ledger(launcher.report)["trained"] == 30


def test_an_incomplete_last_batch_can_be_dropped_and_stands_as_untrained(play):
    _, launcher = play(Torch, config=configuration(dl_config__drop_last=True))
    ledger = check_ledger(launcher.report)
    assert (ledger["trained"], ledger["dropped"]["untrained"]) == (28, 2)


def test_the_number_of_steps_is_learned_from_the_first_simulation(play):
    config = configuration(study_options__nb_time_steps=None, dl_config__buffer="FIFO")
    server, launcher = play(Torch, config=config)
    assert server.nb_time_steps == NB_STEPS
    assert server.nb_expected_batches == 8
    check_ledger(launcher.report)


def test_a_watermark_that_is_not_reached_is_said_with_both_numbers(play, log):
    def short(client, parameters, simulation_id, attempt):
        send_ramp(client, parameters, 1, SIZE)

    _, launcher = play(Torch, short)
    check_ledger(launcher.report, declared=6)
    assert "holds 6 samples, so that its watermark of 8 cannot be reached" in log.text
    assert "sent 1 time steps, but study_options.nb_time_steps is 5" in log.text


def test_a_kind_that_needs_a_watermark_says_so(play):
    with pytest.raises(ValueError, match="a Reservoir buffer needs per_server_watermark"):
        play(Torch, config=configuration(dl_config__buffer="Reservoir", dl_config__per_server_watermark=None))


def test_values_assigned_after_construction_hold(play):
    class Assigned(Torch):
        def __init__(self, config_dict):
            super().__init__(config_dict)
            self.batch_size, self.buffer_size, self.per_server_watermark = 5, 16, 3

    server, _ = play(Assigned)
    assert (server.buffer.maxsize, server.buffer.watermark) == (16, 3)
    assert len(server.batches[0][0]) == 5


@pytest.mark.parametrize("kind", ["FIFO", "FIRO", "Reservoir"])
def test_progress_goes_from_0_to_1(play, kind):
    class Scheduled(Torch):
        def training_step(self, batch, batch_idx):
            self.shares = [*getattr(self, "shares", []), self.progress]
            return super().training_step(batch, batch_idx)

        def on_train_end(self):
            self.at_the_end = self.progress

    server, _ = play(Scheduled, config=configuration(dl_config__buffer=kind))
    assert server.shares == sorted(server.shares)
    assert (server.shares[0], server.at_the_end) == (pytest.approx(0.0, abs=0.5), 1.0)
    if kind != "Reservoir":
        assert server.shares == [batch * 4 / 30 for batch in range(8)]


def test_a_class_may_use_the_name_progress_for_something_of_its_own(play):
    class Bar(Torch):
        def __init__(self, config_dict):
            super().__init__(config_dict)
            self.progress = "a bar of its own"

    assert play(Bar)[0].progress == "a bar of its own"


def test_a_mixin_is_initialised_by_name(play):
    class Extras:
        def __init__(self):
            self.extras = True

    class Mixed(Torch, Extras):
        def __init__(self, config_dict):
            TorchServer.__init__(self, config_dict)
            Extras.__init__(self)

    assert play(Mixed)[0].extras


def test_defaults_are_in_the_configuration_and_old_spellings_stay(play):
    config = configuration(dl_config__n_batches_update=7)
    server, _ = play(Torch, config=config)
    assert server.config_dict is config
    assert server.config is config
    assert server.dl_config["tensorboard"] is True
    assert server.nb_batches_update == server.n_batches_update == server.checkpoint_interval == 7


def test_the_launcher_sees_progress_with_losses(play):
    class Logging(Torch):
        def training_step(self, batch, batch_idx):
            self.tb_logger.log_scalar("Loss/train", 1.0 / batch_idx, batch_idx)

    _, launcher = play(Logging)
    progress = launcher.last_progress
    assert progress["losses"] == {"Loss/train": pytest.approx(1 / 8)}
    assert (progress["simulations_finished"], progress["samples_received"]) == (6, 30)
    assert (progress["batches"], progress["batches_expected"]) == (8, 8)
    assert progress["samples_trained"] == 30


def test_tensorboard_has_the_tags_that_studies_read(play, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    play(Torch, config=configuration(dl_config__nb_batches_update=2, dl_config__get_buffer_statistics=True))
    events = EventAccumulator(str(tmp_path / "tensorboard" / "gpu_0"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"samples_per_second", "buffer_size", "put_time", "put_get_inc", "buffer_mean/parameter_0"} <= tags


# Samples that are looked at one by one.


def test_a_sample_that_is_refused_is_not_trained_and_stands_as_untrained(play, log):
    class Choosy(Torch):
        def process_simulation_data(self, data, config_dict):
            return data.simulation_id, data.time_step

        def _validate_data(self, simulation_data):
            return simulation_data.time_step != 0

    server, launcher = play(Choosy)
    assert all((steps > 0).all() for _, steps in server.batches)
    ledger = check_ledger(launcher.report)
    assert (ledger["trained"], ledger["dropped"]["untrained"]) == (24, 6)
    assert "which is slow" in log.text


def test_partial_data_are_shown_field_by_field_when_a_class_asks(play):
    parts = []

    class Partial(Torch):
        def _process_partial_data_reception(self, simulation, simulation_data):
            parts.append((simulation.simulation_id, simulation_data.time_step, simulation_data.field))

    play(Partial)
    assert sorted(parts) == [(s, t, "u") for s in range(6) for t in range(5)]


# Loops of a user's own.


def test_a_train_of_ones_own_over_the_dataset(play):
    class Own(TorchServer):
        def prepare_training_attributes(self):
            model = torch.nn.Linear(3, SIZE)
            return model, torch.optim.SGD(model.parameters(), lr=1e-9)

        def train(self):
            self.seen = []
            loader = DataLoader(self.dataset, batch_size=self.batch_size, drop_last=True, num_workers=0)
            for batch_idx, (inputs, field) in enumerate(loader):
                if self.other_processes_finished(batch_idx):
                    break
                assert field.shape == (4, SIZE)
                self.seen.append(inputs)

    server, launcher = play(Own)
    assert len(server.seen) == 7
    ledger = check_ledger(launcher.report)
    assert (ledger["trained"], ledger["dropped"]["untrained"]) == (28, 2)
    assert launcher.report["batches"] == 7


def test_a_class_of_2023(play, tmp_path):
    class Study2023(TorchServer):
        def set_model(self):
            assert self.device.type in ("cpu", "cuda")
            self.tb_logger.log_scalar("Loss/train", 1.0, 0)
            self.model = torch.nn.Linear(3, SIZE)
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-9)

        def configure_data_collection(self):
            self.buffer = Reservoir(self.buffer_size, self.per_server_watermark)
            self.dataset = MelissaIterableDataset(
                buffer=self.buffer, config=self.config, transform=self.process_simulation_data
            )

        def process_simulation_data(self, msg, config):
            inputs = torch.tensor([*msg.parameters, msg.time_step], dtype=torch.float32)
            return inputs, torch.from_numpy(msg.data[0].copy())

        def train(self, model):
            assert model is self.model
            self.nb_trained = 0
            loader = DataLoader(self.dataset, batch_size=self.batch_size, num_workers=0)
            for batch, (inputs, target) in enumerate(loader):
                if self.other_processes_finished(batch):
                    break
                loss = torch.nn.functional.mse_loss(model(inputs), target)
                loss.backward()
                self.nb_trained += len(inputs)
                with self.buffer.mutex:
                    assert len(self.buffer.queue) == len(self.buffer)
                    sum(self.buffer.seen_ctr.values())
            checkpoint(model=model, optimizer=self.optimizer, batch=batch, loss=loss)

    server, launcher = play(Study2023)
    assert server.nb_trained >= 30
    check_ledger(launcher.report)
    content = torch.load(tmp_path / "checkpoints" / "model.pt", weights_only=True)
    assert set(content) == {"batch", "loss", "model_state_dict", "optimizer_state_dict"}


def test_training_that_ends_before_the_data_stops_the_study_early(play):
    class Short(Torch):
        def train(self):
            self.batches_wanted = [next(iter(self.dataset))]

    def endless(client, parameters, simulation_id, attempt):
        send_ramp(client, parameters, 100_000, SIZE)

    _, launcher = play(Short, endless, configuration(study_options__nb_time_steps=None))
    ledger = launcher.report["ledger"]
    assert ledger["dropped"]["stopped_early"] > 0
    assert ledger["declared"] == ledger["trained"] + sum(ledger["dropped"].values())


def test_a_stop_of_the_launcher_ends_the_study_in_order(play):
    class Stopped(Torch):
        def on_batch_end(self, batch_idx):
            if batch_idx == 3:
                self.launcherfd.stop("the user pressed Ctrl-C")
            time.sleep(0.01)

    def endless(client, parameters, simulation_id, attempt):
        send_ramp(client, parameters, 1_000_000, SIZE)

    server, launcher = play(Stopped, endless, configuration(study_options__nb_time_steps=None))
    assert server.exit_status == 143
    assert launcher.report["simulations"]["failed"] == 0
    ledger = launcher.report["ledger"]
    assert ledger["declared"] == ledger["trained"] + sum(ledger["dropped"].values())
    assert "on_train_end" in server.calls


# Faults.


def test_a_failed_client_goes_on_where_it_was(play):
    def fails_once(client, parameters, simulation_id, attempt):
        if simulation_id == 2 and attempt == 1:
            client.init("u", SIZE, "float64")
            client.send("u", np.zeros(SIZE))
            client.send("u", np.zeros(SIZE))
            raise RuntimeError("a node died")
        send_ramp(client, parameters, NB_STEPS, SIZE)

    _, launcher = play(Torch, fails_once)
    assert launcher.report["simulations"]["resubmitted"] == 1
    assert check_ledger(launcher.report)["trained"] == 30
    assert launcher.tokens[2][0] == launcher.tokens[2][1]


def test_a_dropped_client_is_in_the_report_with_its_reason(play):
    def one_is_dead(client, parameters, simulation_id, attempt):
        if simulation_id == 1:
            client.init("u", SIZE, "float64")
            client.send("u", np.zeros(SIZE))
            raise RuntimeError("dead")
        send_ramp(client, parameters, NB_STEPS, SIZE)

    _, launcher = play(Torch, one_is_dead, configuration(ignore_client_death=True))
    assert launcher.report["simulations"]["failed"] == 1
    ledger = launcher.report["ledger"]
    assert ledger["declared"] == ledger["trained"] + sum(ledger["dropped"].values())
    assert ledger["trained"] in (25, 26)


def test_redrawn_parameters_reach_solver_and_training(play):
    def fails_with_the_first_draw(client, parameters, simulation_id, attempt):
        client.init("u", SIZE, "float64")
        client.send("u", np.full(SIZE, 1000.0 * parameters[0]))
        if simulation_id == 0 and attempt == 1:
            # The step must have arrived before the client dies.
            time.sleep(0.3)
            raise RuntimeError("these parameters do not work")
        for step in range(1, NB_STEPS):
            client.send("u", np.full(SIZE, 1000.0 * parameters[0] + step))
        client.finalize()

    config = configuration(study_options__crashes_before_redraw=0)
    server, launcher = play(Torch, fails_with_the_first_draw, config)
    first, second = launcher.tokens[0]
    assert first != second
    for inputs, field in server.batches:
        for row, values in zip(inputs, field, strict=True):
            assert torch.allclose(values, torch.full((SIZE,), 1000 * row[0] + row[2]), rtol=1e-5)
    ledger = launcher.report["ledger"]
    assert ledger["declared"] == 31
    assert ledger["declared"] == ledger["trained"] + sum(ledger["dropped"].values())


def test_a_field_that_the_study_does_not_have_is_named(play):
    def wrong_field(client, parameters, simulation_id, attempt):
        client.init("temprature", SIZE, "float64")
        client.send("temprature", np.zeros(SIZE))

    with pytest.raises(FatalError) as error:
        play(Torch, wrong_field)
    assert "first 3 clients" in str(error.value)
    assert "temprature" in str(error.value)
    (failure,) = play.launcher.failures
    assert failure.kind == "FatalError"
    assert "temprature" in failure.message


def test_without_fault_tolerance_a_failed_client_ends_the_study(play):
    def dies(client, parameters, simulation_id, attempt):
        client.init("u", SIZE, "float64")
        client.send("u", np.zeros(SIZE))
        time.sleep(0.2)
        raise RuntimeError("dead")

    with pytest.raises(FaultToleranceError, match="RuntimeError: dead"):
        play(Torch, dies, configuration(launcher_config__fault_tolerance=False))
    assert [failure.kind for failure in play.launcher.failures] == ["FaultToleranceError"]
    assert play.launcher.report["ledger"]["declared"] > 0


def test_a_slab_that_does_not_fit_ends_the_study_with_both_figures(play):
    def huge(client, parameters, simulation_id, attempt):
        client.init("u", 2_000_000_000, "float64")
        client.send("u", np.zeros(1))

    def declared_huge(client, parameters, simulation_id, attempt):
        client.init("u", 1 << 33, "float32")
        values = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (1 << 33,), (0,))
        client.send("u", values)

    with pytest.raises(MelissaError, match=r"(?i)GiB|bytes|memory"):
        play(Torch, declared_huge)


# Errors of the user's class.


HOOKS = [
    "prepare_training_attributes",
    "on_train_start",
    "on_batch_start",
    "training_step",
    "on_batch_end",
    "on_validation_start",
    "validation_step",
    "on_validation_end",
    "checkpoint",
    "on_train_end",
    "process_simulation_data",
    "process_simulation_batch",
    "draw_parameters",
    "setup_environment",
]


@pytest.mark.parametrize("hook", HOOKS)
def test_an_error_in_a_hook_ends_the_study_with_its_traceback(play, hook):
    def broken(self, *arguments, **options):
        raise LookupError(f"my mistake in {hook}")

    def __init__(self, config_dict):
        Torch.__init__(self, config_dict)
        self.valid_dataloader = [1]

    cls = type("Broken", (Torch,), {hook: broken, "__init__": __init__})
    start = time.monotonic()
    with pytest.raises(LookupError, match=f"my mistake in {hook}"):
        play(cls, config=configuration(dl_config__nb_batches_update=1))
    assert time.monotonic() - start < 60
    (failure,) = play.launcher.failures
    assert failure.kind == "LookupError"
    assert f"my mistake in {hook}" in failure.message
    assert "in broken" in failure.traceback
    assert "site-packages" not in failure.traceback
    assert play.server.exit_status == 1
    assert not any(thread.name == "melissa-control" for thread in threading.enumerate())


def test_a_missing_hook_is_named_before_any_client_is_asked_for(play):
    class Incomplete(TorchServer):
        def prepare_training_attributes(self):
            return None, None

    with pytest.raises(TrainingError, match=r"class Incomplete .*test_study\.py.* lacks training_step"):
        play(Incomplete)
    assert play.launcher.of(Register) == []


def test_a_class_without_a_way_to_draw_is_told_how(play, tmp_path):
    class NoSampler(Torch):
        pass

    install_link(PlayedLauncher(None))
    server = NoSampler(configuration())
    with pytest.raises(TrainingError, match="set_parameter_sampler"):
        server.start()


def test_attributes_that_are_no_pair_are_shown(play):
    class NoPair(Torch):
        def prepare_training_attributes(self):
            return "model"

    with pytest.raises(TrainingError, match=r"must return \(model, optimizer\)(.|\n)*'model'"):
        play(NoPair)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dl_config__per_server_watermark": 31, "dl_config__buffer_size": 40}, r"31(.|\n)*30 samples"),
        ({"study_options__group_size": 2}, "group_size is 2"),
        ({"dl_config__per_server_watermark": 20}, "20"),
        ({"dl_config__setup_slurm_ddp": True}, "SLURM_PROCID"),
        ({"dl_config__convert_log_to_df": True}, "pip install pandas"),
    ],
)
def test_what_cannot_work_is_refused_before_any_client_is_asked_for(play, monkeypatch, changes, text):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UnsupportedConfiguration, match=text):
        play(Torch, config=configuration(**changes))
    assert play.launcher.of(Register) == []


@pytest.mark.parametrize("missing", ["dl_config", "study_options", "client_config"])
def test_a_missing_section_is_named_at_construction(play, missing):
    config = configuration()
    del config[missing]
    install_link(PlayedLauncher(None))
    with pytest.raises(ConfigurationFileError, match=missing):
        Torch(config)


def test_a_buffer_before_the_server_is_online_is_an_error_that_says_when(play):
    install_link(PlayedLauncher(None))
    server = Torch(configuration())
    with pytest.raises(TrainingError, match="made when the server comes online"):
        server.buffer  # noqa: B018
    with pytest.raises(TypeError, match="BaseQueue"):
        server.buffer = []
    server.buffer = FIRO(10, 2)
    assert server.buffer.maxsize == 10


def test_a_server_can_be_constructed_without_a_launcher_but_not_started(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MELISSA_LAUNCHER_ADDRESS", raising=False)
    install_link(None)
    server = Torch(configuration())
    with pytest.raises(FatalError, match=r"MELISSA_LAUNCHER_ADDRESS(.|\n)*melissa-launcher"):
        server.start()


# Checkpoints of the model.


def test_a_checkpoint_is_loaded_into_a_fresh_model(play, tmp_path):
    class Trained(TorchServer):
        def prepare_training_attributes(self):
            model = torch.nn.Linear(3, SIZE)
            return model, torch.optim.Adam(model.parameters(), lr=1e-3)

        def training_step(self, batch, batch_idx):
            inputs, field = batch
            self.optimizer.zero_grad()
            torch.nn.functional.mse_loss(self.model(inputs), field).backward()
            self.optimizer.step()

    server, _ = play(Trained, config=configuration(dl_config__checkpoint_interval=3))
    content = torch.load(tmp_path / "checkpoints" / "model.pt", weights_only=True)
    assert content["batch"] == 8
    fresh = Trained(configuration())
    fresh.model, fresh.optimizer = fresh.prepare_training_attributes()
    fresh._load_model_from_checkpoint()
    for name, value in server.unwrapped_model.state_dict().items():
        assert torch.equal(fresh.model.state_dict()[name], value)
    assert fresh.batch_offset == 8
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["melissa", "model.pt", "random_states_0.pt"]
    with pytest.raises(TrainingError, match="no checkpoint"):
        fresh._load_model_from_checkpoint("elsewhere")
