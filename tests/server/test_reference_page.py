"""The names of the reference page: each is there, where the page has it, with its docstring."""

import inspect
from abc import ABC

import pytest

from melissa.exceptions import MelissaError
from melissa.server.base_server import BaseServer
from melissa.server.deep_learning import base_dl_server
from melissa.server.deep_learning.base_dl_server import (
    DeepMelissaServer,
    ExperimentalMonitoringMixin,
    TrainingWorkflowMixin,
)
from melissa.server.deep_learning.torch_server import TorchServer
from melissa.server.link import install_link

# name: (parameters after self with their defaults, whether it is abstract)
SERVER = {
    "__configure_data_collection": ({}, False),
    "_check_group_size": ({}, False),
    "__loop_pings": ({}, False),
    "__start_pinger_thread": ({}, False),
    "__stop_pinger_thread": ({}, False),
    "start": ({}, False),
    "_server_online": ({}, False),
    "_server_finalize": ({"exit_": 0}, False),
    "__signal_end_of_reception": ({}, False),
    "_receive": ({}, False),
    "_process_partial_data_reception": ({"simulation": ..., "simulation_data": ...}, False),
    "_validate_data": ({"simulation_data": ...}, False),
    "__set_expected_batches_samples_watermark": ({}, False),
    "__check_water_mark": ({}, False),
    "other_processes_finished": ({"batch_idx": ...}, False),
    "_synchronize_data_availability": ({}, False),
    "checkpoint_state": ({}, False),
    "_restart_from_checkpoint": ({}, False),
    "process_simulation_data": ({"data": ..., "config_dict": ...}, True),
    "validation": ({"batch_idx": ...}, False),
    "train": ({}, False),
    "_setup_environment_slurm": ({}, True),
    "prepare_training_attributes": ({}, True),
    "checkpoint": ({"batch_idx": ..., "path": "checkpoints"}, True),
    "_checkpoint": ({"batch_idx": ..., "path": "checkpoints"}, False),
    "_load_model_from_checkpoint": ({}, True),
}

WORKFLOW = {
    "training_step": ({"batch": ..., "batch_idx": ...}, True),
    "validation_step": ({"batch": ..., "valid_batch_idx": ..., "batch_idx": ...}, False),
    "on_train_start": ({}, False),
    "on_train_end": ({}, False),
    "on_batch_start": ({"batch_idx": ...}, False),
    "on_batch_end": ({"batch_idx": ...}, False),
    "on_validation_start": ({"batch_idx": ...}, False),
    "on_validation_end": ({"batch_idx": ...}, False),
}

ATTRIBUTES = [
    "dl_config",
    "batch_size",
    "per_server_watermark",
    "buffer_size",
    "pseudo_epochs",
    "current_sample_count",
    "nb_expected_batches",
    "nb_batches_update",
    "checkpoint_interval",
    "setup_slurm_ddp",
    "_model",
    "_optimizer",
    "__buffer",
    "__dataset",
    "_framework_t",
    "_tb_logger",
]


def mangled(name):
    return f"_DeepMelissaServer{name}" if name.startswith("__") else name


def check(cls, name, parameters, is_abstract):
    method = cls.__dict__[mangled(name)]
    assert inspect.getdoc(method), f"{cls.__name__}.{name} has no docstring"
    found = {
        parameter.name: ... if parameter.default is parameter.empty else parameter.default
        for parameter in list(inspect.signature(method).parameters.values())[1:]
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    assert found == parameters
    assert getattr(method, "__isabstractmethod__", False) == is_abstract


def test_the_page_has_something_to_check():
    assert len(SERVER) == 26
    assert len(WORKFLOW) == 8
    assert len(ATTRIBUTES) == 16


@pytest.mark.parametrize("name", SERVER)
def test_a_method_of_the_server_is_as_the_page_has_it(name):
    check(DeepMelissaServer, name, *SERVER[name])


@pytest.mark.parametrize("name", WORKFLOW)
def test_a_hook_is_as_the_page_has_it(name):
    check(TrainingWorkflowMixin, name, *WORKFLOW[name])
    if name != "training_step":
        assert hasattr(TrainingWorkflowMixin, f"_{name}")


@pytest.mark.parametrize("name", ["training_step", "validation_step"])
def test_steps_take_further_keywords(name):
    kinds = [
        parameter.kind
        for parameter in inspect.signature(getattr(TrainingWorkflowMixin, name)).parameters.values()
    ]
    assert inspect.Parameter.VAR_KEYWORD in kinds


def test_the_bases_are_those_of_the_page():
    assert DeepMelissaServer.__bases__ == (BaseServer, ExperimentalMonitoringMixin, TrainingWorkflowMixin)
    assert TrainingWorkflowMixin.__bases__ == (ABC,)
    assert issubclass(TorchServer, DeepMelissaServer)


@pytest.mark.parametrize("name", ["TrainingError", "UnsupportedConfiguration"])
def test_exceptions_are_where_the_page_has_them(name):
    exception = getattr(base_dl_server, name)
    assert issubclass(exception, MelissaError)
    assert inspect.getdoc(exception)


def test_rank_zero_only_calls_on_rank_0_alone():
    class Ranked:
        def __init__(self, rank):
            self.rank = rank

        @base_dl_server.rank_zero_only
        def where(self, word="here"):
            """Say where."""
            return f"{word} on {self.rank}"

    assert Ranked(0).where("there") == "there on 0"
    assert Ranked(1).where() is None
    assert Ranked.where.__doc__ == "Say where."
    assert base_dl_server.rank_zero_only(lambda: "alone")() == "alone"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("MELISSA_LAUNCHER_ADDRESS", raising=False)
    install_link(None)
    return TorchServer(
        {
            "study_options": {"field_names": ["u"], "parameter_sweep_size": 2, "nb_parameters": 1},
            "dl_config": {"batch_size": 4, "buffer_size": 20},
            "client_config": {"executable_command": "true"},
        }
    )


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_of_the_page_is_there_after_construction(server, name):
    assert hasattr(server, mangled(name))
    if not name.startswith("_"):
        assert name in DeepMelissaServer.__doc__
