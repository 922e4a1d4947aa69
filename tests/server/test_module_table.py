"""What study code finds around the reference page: modules, names, calls, and what a server has.

The tables are those of the compatibility page. A name that study code imports, a keyword that it gives or an
attribute that it reads is not to disappear unnoticed.
"""

import importlib
import inspect
import os
import sys

import numpy as np
import pytest

from melissa.launcher.message import JobUpdate, Ping
from melissa.scheduler.job import State
from melissa.server import exceptions
from melissa.server.deep_learning.base_dl_server import DeepMelissaServer
from melissa.server.deep_learning.frameworks import FrameworkType
from melissa.server.deep_learning.reservoir import BufferType
from melissa.server.deep_learning.torch_server import TorchServer
from melissa.server.link import install_link
from melissa.server.parameters import ParameterSamplerType
from melissa.server.simulation import PartialSimulationData, SimulationData

MODULES = {
    "melissa.server.base_server": "BaseServer",
    "melissa.server.deep_learning": "FrameworkType",
    "melissa.server.deep_learning.frameworks": "FrameworkType",
    "melissa.server.deep_learning.base_dl_server": (
        "DeepMelissaServer TrainingError UnsupportedConfiguration rank_zero_only "
        "ExperimentalMonitoringMixin TrainingWorkflowMixin"
    ),
    "melissa.server.deep_learning.train_workflow": "TrainingWorkflowMixin",
    "melissa.server.deep_learning.torch_server": "TorchServer checkpoint",
    "melissa.server.deep_learning.tf_server": "TFServer",
    "melissa.server.deep_learning.dataset": "MelissaIterableDataset make_dataset make_dataloader",
    "melissa.server.deep_learning.reservoir": (
        "BaseQueue FIFO FIRO Reservoir BatchReservoir BufferType make_buffer"
    ),
    "melissa.server.deep_learning.tensorboard": (
        "TensorboardLogger TorchTensorboardLogger make_tb_logger convert_tb_logs_to_df"
    ),
    "melissa.server.deep_learning.tensorboard_logger": (
        "TensorboardLogger TorchTensorboardLogger make_tb_logger convert_tb_logs_to_df"
    ),
    "melissa.server.simulation": (
        "SimulationData PartialSimulationData Simulation SimulationStatus SimulationDataStatus"
    ),
    "melissa.server.offline_server": "OfflineServer",
    "melissa.server.parameters": (
        "ParameterSamplerType RandomUniform HaltonGenerator LHSGenerator BaseExperiment StaticExperiment "
        "RandomUniformSamplerMixIn HaltonSamplerMixIn LatinHypercubeSamplerMixIn make_parameter_sampler"
    ),
    "melissa.server.exceptions": (
        "MelissaError FatalError FaultToleranceError ConfigurationFileError TrainingError ReceptionError"
    ),
    "melissa.launcher.schema": "CONFIG_PARSE_MODE",
    "melissa.launcher.message": (
        "Ping JobUpdate Register SubmitClient CancelClient Progress Failure Finished Stop"
    ),
    "melissa.scheduler.job": "State",
    "melissa_api": "melissa_init melissa_send melissa_finalize",
}

# The calls of the table: what each takes first, with defaults; ... is a parameter without one.
CALLS = {
    "melissa.server.base_server:BaseServer": {"config_dict": ..., "checkpoint_file": "checkpoint.pkl"},
    "melissa.server.deep_learning.base_dl_server:DeepMelissaServer": {"config_dict": ...},
    "melissa.server.deep_learning.torch_server:TorchServer": {"config_dict": ...},
    "melissa.server.offline_server:OfflineServer": {"config_dict": ...},
    "melissa.server.deep_learning.tf_server:TFServer": {"config_dict": ...},
    "melissa.server.deep_learning.reservoir:make_buffer": {
        "buffer_size": ...,
        "buffer_t": BufferType.FIFO,
        "per_server_watermark": None,
        "pseudo_epochs": None,
        "batch_size": None,
    },
    "melissa.server.deep_learning.reservoir:FIFO": {"maxsize": ...},
    "melissa.server.deep_learning.reservoir:FIRO": {"maxsize": ..., "watermark": ..., "pseudo_epochs": 1},
    "melissa.server.deep_learning.reservoir:Reservoir": {"maxsize": ..., "watermark": ...},
    "melissa.server.simulation:SimulationData": {
        "simulation_id": ...,
        "time_step": ...,
        "data": ...,
        "parameters": ...,
    },
    "melissa.server.simulation:PartialSimulationData.from_msg": {"msg": ..., "learning": 2},
    "melissa.launcher.message:JobUpdate": {"job_id": ..., "job_state": ...},
    "melissa.launcher.message:Ping": {},
    "melissa.server.deep_learning.tensorboard:TensorboardLogger.log_scalar": {
        "tag": ...,
        "value": ...,
        "step": ...,
    },
    "melissa.server.deep_learning.tensorboard:TensorboardLogger.log_histogram": {
        "tag": ...,
        "values": ...,
        "step": None,
    },
    "melissa.server.deep_learning.tensorboard:TensorboardLogger.log_figure": {
        "tag": ...,
        "fig": ...,
        "step": None,
        "close": True,
    },
    "melissa.server.parameters:BaseExperiment.sample": {"nb_samples": 1},
    "melissa.server.parameters:BaseExperiment.draw": {},
    "melissa.server.parameters:BaseExperiment.process_drawn": {"parameters": ...},
    "melissa.server.base_server:BaseServer.draw_parameters": {},
    "melissa_api:melissa_finalize": {},
}

# Calls whose arguments study code gives by name.
KEYWORDS = {
    "melissa.server.deep_learning.torch_server:checkpoint": "model optimizer batch loss",
    "melissa.server.deep_learning.dataset:MelissaIterableDataset": (
        "buffer tb_logger config config_dict transform"
    ),
    "melissa.server.deep_learning.tensorboard:TorchTensorboardLogger": "rank disable debug",
    "melissa.server.deep_learning.tensorboard:TensorboardLogger.log_scalars": "step",
    "melissa.server.base_server:BaseServer.set_parameter_sampler": "sampler_t",
}

MEMBERS = {
    FrameworkType: {"DEFAULT": 0, "TORCH": 1, "TENSORFLOW": 2},
    BufferType: {"FIFO": 0, "FIRO": 1, "Reservoir": 2, "BatchReservoir": 3, "SimPairedReservoir": 4},
    ParameterSamplerType: {"RANDOM_UNIFORM": 0, "HALTON": 1, "LHS": 2},
}


def find(path):
    """Return what ``module:name.name`` names."""
    module, _, names = path.partition(":")
    found = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def parameters_of(path):
    """Return the parameters of a call; those of a method without its object."""
    found = find(path)
    parameters = list(inspect.signature(found).parameters.values())
    return parameters[1:] if parameters and parameters[0].name == "self" else parameters


@pytest.mark.parametrize("module", MODULES)
def test_study_code_finds_names_in_the_modules_where_it_looks(module):
    names = MODULES[module].split()
    assert names
    for name in names:
        found = getattr(importlib.import_module(module), name)
        assert inspect.getdoc(found) or isinstance(found, int), f"{module}.{name} has no docstring"


@pytest.mark.parametrize("path", CALLS)
def test_study_code_can_make_its_calls_by_position(path):
    expected = CALLS[path]
    found = {
        parameter.name: ... if parameter.default is parameter.empty else parameter.default
        for parameter in parameters_of(path)[: len(expected)]
    }
    assert list(found.items()) == list(expected.items())
    further = parameters_of(path)[len(expected) :]
    needed = [
        p.name for p in further if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    assert needed == []


@pytest.mark.parametrize("path", KEYWORDS)
def test_study_code_can_name_the_arguments_that_it_gives(path):
    names = [
        parameter.name for parameter in parameters_of(path) if parameter.kind is not parameter.POSITIONAL_ONLY
    ]
    assert set(KEYWORDS[path].split()) <= set(names)


@pytest.mark.parametrize("enumeration", MEMBERS)
def test_members_of_enumerations_have_their_numbers(enumeration):
    assert {member.name: member.value for member in enumeration} == MEMBERS[enumeration]


def test_ranks_from_slurms_environment_have_their_names(monkeypatch):
    slurm = {
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "3",
        "SLURM_JOB_ID": "17",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "node7",
        "SLURM_JOB_NODELIST": "node7",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "melissa.utility.idr_torch", raising=False)
    idr_torch = importlib.import_module("melissa.utility.idr_torch")
    assert (idr_torch.rank, idr_torch.local_rank, idr_torch.size, idr_torch.cpus_per_task) == (1, 1, 2, 3)
    assert idr_torch.hostnames == ["node7"]
    assert {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)


def test_states_of_a_job_have_their_names():
    assert {state.name for state in State} == {"WAITING", "RUNNING", "TERMINATED", "FAILED", "ERROR"}


def test_exceptions_are_caught_as_study_code_catches_them():
    assert issubclass(exceptions.FatalError, exceptions.MelissaError)
    assert issubclass(exceptions.FaultToleranceError, exceptions.FatalError)
    for name in ("ConfigurationFileError", "TrainingError", "ReceptionError"):
        assert issubclass(getattr(exceptions, name), exceptions.MelissaError)


def test_the_parse_mode_of_configurations_takes_comments_and_trailing_commas():
    import rapidjson

    from melissa.launcher.schema import CONFIG_PARSE_MODE

    text = '{"a": [1, 2,], // a comment\n}'
    assert rapidjson.loads(text, parse_mode=CONFIG_PARSE_MODE) == {"a": [1, 2]}


def test_a_sample_is_made_and_read_as_study_code_does_it():
    flow, heat = np.arange(3.0), np.arange(2.0)
    sample = SimulationData(4, 7, {"flow": flow, "heat": heat}, [0.5, 2])
    assert (sample.simulation_id, sample.time_step) == (4, 7)
    assert sample.data["heat"] is sample.data[1] is heat
    assert sample.data[0] is flow
    assert list(sample.data) == ["flow", "heat"]
    assert [*sample.data.values()] == [flow, heat]
    assert sample.parameters[-1:] + [sample.time_step] == [2, 7]  # noqa: RUF005  # as studies write it
    with pytest.raises(KeyError, match="no field at position 2: there are 2"):
        sample.data[2]


def test_a_part_of_a_sample_can_be_made_from_its_parts():
    part = PartialSimulationData(simulation_id=1, time_step=2, client_rank=3, field="u", data=np.zeros(5))
    assert part.data_size == 5


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server as study code constructs it, without a launcher."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MELISSA_LAUNCHER_ADDRESS", raising=False)
    install_link(None)
    return TorchServer(
        {
            "study_options": {"field_names": ["u"], "parameter_sweep_size": 2, "nb_parameters": 1},
            "dl_config": {"batch_size": 4, "buffer_size": 20},
            "client_config": {"executable_command": "true"},
        }
    )


ATTRIBUTES = [
    "comm",
    "rank",
    "comm_size",
    "client_comm_size",
    "config_dict",
    "config",
    "study_options",
    "dl_config",
    "nb_parameters",
    "nb_time_steps",
    "verbose_level",
    "no_fault_tolerance",
    "nb_groups",
    "finished_groups",
    "_job_limit",
    "_is_receiving",
    "_parameter_sampler",
    "launcherfd",
    "encode_msg",
    "decode_msg",
    "model",
    "optimizer",
    "tb_logger",
    "valid_dataloader",
    "_valid_dataloader",
    "device",
    "unwrapped_model",
    "setup_environment",
    "n_batches_update",
    "num_server_proc",
    "batch_offset",
    "set_parameter_sampler",
    "draw_parameters",
    "make_study_offline",
]


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_what_study_code_touches_beside_the_page_is_there(server, name):
    assert hasattr(server, name)


@pytest.mark.parametrize("name", ["get_buffer_statistics", "set_buffer"])
def test_names_that_studies_define_themselves_are_free(name):
    assert not hasattr(TorchServer, name)


@pytest.mark.parametrize("name", ["model", "optimizer", "buffer", "dataset", "valid_dataloader", "tb_logger"])
def test_parts_of_a_server_are_properties_that_can_be_set_but_for_the_logger(name):
    attribute = inspect.getattr_static(DeepMelissaServer, name)
    assert isinstance(attribute, property)
    assert inspect.getdoc(attribute)
    assert (attribute.fset is None) == (name == "tb_logger")


@pytest.mark.parametrize("name", ["training_step", "prepare_training_attributes"])
def test_what_only_a_user_can_write_raises_when_called(server, name):
    arguments = (None, 1) if name == "training_step" else ()
    with pytest.raises(NotImplementedError, match=f"TorchServer does not define {name}"):
        getattr(server, name)(*arguments)


def test_the_model_and_its_like_can_be_set(server):
    server.model, server.optimizer, server.valid_dataloader = "model", "optimizer", [1, 2]
    assert (server._model, server._optimizer, server._valid_dataloader) == ("model", "optimizer", [1, 2])
    assert server.unwrapped_model == "model"
    with pytest.raises(AttributeError):
        server.tb_logger = None


def test_the_configuration_is_a_plain_dictionary_with_every_default(server):
    assert type(server.config_dict) is dict
    assert server.config is server.config_dict
    assert server.dl_config["tensorboard"] is True
    assert server.study_options["verbosity"] == server.verbose_level == 3
    server.dl_config["a key of the study"] = 1
    assert server.config_dict["dl_config"]["a key of the study"] == 1


def test_messages_go_to_bytes_and_back_as_study_code_of_2023_does_it(server):
    assert server.decode_msg(server.encode_msg(Ping())) == [Ping()]
    update = JobUpdate("3.1", State.RUNNING)
    assert server.decode_msg(server.encode_msg(update)) == [update]
