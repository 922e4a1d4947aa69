"""What `TorchServer` sets up, and its checkpoints outside a study."""

import os
import random
import resource
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from melissa.exceptions import CheckpointError, FatalError, TrainingError, UnsupportedConfiguration
from melissa.server.deep_learning.torch_model import prepare_model
from melissa.server.deep_learning.torch_server import TorchServer, checkpoint
from melissa.server.link import install_link


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MELISSA_LAUNCHER_ADDRESS", raising=False)
    install_link(None)
    threads = torch.get_num_threads()
    yield TorchServer(
        {
            "study_options": {"field_names": ["u"], "parameter_sweep_size": 50, "nb_parameters": 1},
            "dl_config": {"batch_size": 4, "buffer_size": 20, "tensorboard": False},
            "client_config": {"executable_command": "true"},
        }
    )
    torch.set_num_threads(threads)


def test_the_device_is_there_from_construction_on(server):
    assert server.device == torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    server.device = torch.device("meta")
    assert server.device.type == "meta"


class Pageable:
    """Memory that can be pinned, as a tensor's on a machine with a GPU."""

    is_cuda = False

    def pin_memory(self):
        return "pinned"


def test_batches_are_pinned_where_training_runs_on_a_gpu_and_only_there(server):
    batch = (Pageable(), {"u": Pageable()}, 3)
    server.device = torch.device("cuda:0")
    assert server._pin(batch) == ("pinned", {"u": "pinned"}, 3)
    server.device = "cpu"
    assert server.device == torch.device("cpu")
    assert server._pin(batch) is batch


def test_torch_leaves_the_cores_to_solvers_on_one_machine(server, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    server._job_limit = len(os.sched_getaffinity(0)) + 1
    server.setup_environment()
    assert torch.get_num_threads() == 1


def test_the_users_number_of_threads_counts(server, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    torch.set_num_threads(3)
    server.setup_environment()
    assert torch.get_num_threads() == 3


@pytest.fixture
def slurm(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "MASTER_"))]:
        monkeypatch.delenv(name)

    def set_task(**values):
        monkeypatch.setenv("MASTER_ADDR", "")  # set by the server, and so undone in the end
        monkeypatch.delenv("MASTER_ADDR")
        for name, value in values.items():
            monkeypatch.setenv(f"SLURM_{name}", value)

    return set_task


def test_slurm_gives_the_rank(server, slurm):
    slurm(PROCID="0", LOCALID="0", NTASKS="1", JOB_NODELIST="node[1-2]")
    server._setup_environment_slurm()
    assert server.device.type in ("cpu", "cuda")


def test_outside_slurm_its_environment_is_missed(server, slurm):
    with pytest.raises(UnsupportedConfiguration, match=r"setup_slurm_ddp .* no SLURM_PROCID, no SLURM_L"):
        server._setup_environment_slurm()


def test_slurm_and_mpi_must_count_the_same_ranks(server, slurm):
    slurm(PROCID="2", LOCALID="0", NTASKS="4", JOB_NODELIST="node[1-2]")
    with pytest.raises(UnsupportedConfiguration, match="task 2 of 4, but it is server rank 0 of 1"):
        server._setup_environment_slurm()


def test_wrappers_of_a_model_are_taken_off(server):
    inner = torch.nn.Linear(1, 1)
    server.model = torch.nn.DataParallel(inner)
    assert server.unwrapped_model is inner
    server.model = inner
    assert server.unwrapped_model is inner


def test_a_checkpoint_of_2023_has_its_four_keys_and_no_pickled_code(server, tmp_path):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    checkpoint(model=model, optimizer=optimizer, batch=7, loss=model(torch.ones(2)).sum())
    content = torch.load(tmp_path / "checkpoints" / "model.pt", weights_only=True)
    assert set(content) == {"batch", "loss", "model_state_dict", "optimizer_state_dict"}
    assert content["batch"] == 7
    assert not content["loss"].requires_grad


def test_a_checkpoint_is_not_replaced_by_weights_that_are_nan(server, tmp_path):
    server.model, server.optimizer = torch.nn.Linear(2, 1), None
    server.checkpoint(3)
    torch.nn.init.constant_(server.model.bias, float("nan"))
    with pytest.raises(TrainingError, match=r"at batch 4 the model's parameter 'bias' is NaN.*is kept"):
        server.checkpoint(4)
    assert torch.load(tmp_path / "checkpoints" / "model.pt", weights_only=True)["batch"] == 3


def test_a_model_that_was_just_saved_is_not_written_twice(server, tmp_path):
    server.model, server.optimizer = torch.nn.Linear(2, 1), None
    server.training_step = lambda batch, batch_idx: None
    model, rank = tmp_path / "checkpoints" / "model.pt", tmp_path / "8" / "rank0"
    server._training_step(None, 8)
    server.checkpoint(8)
    server._checkpoint_model(rank)
    assert (rank / "model.pt").samefile(model)
    assert (rank / "random_states_0.pt").is_file()
    # One batch later it is another model, and the older one stays what it is.
    before = (rank / "model.pt").read_bytes()
    server._training_step(None, 9)
    torch.nn.init.zeros_(server.model.weight)
    server._checkpoint_model(tmp_path / "9" / "rank0")
    server.checkpoint(9)
    assert (rank / "model.pt").read_bytes() == before
    assert torch.load(tmp_path / "9" / "rank0" / "model.pt", weights_only=True)["batch"] == 9


def test_a_checkpoint_of_another_model_is_refused(server):
    server.model, server.optimizer = torch.nn.Linear(2, 1), None
    server.checkpoint(3)
    server.model = torch.nn.Linear(3, 1)
    with pytest.raises(TrainingError, match="not of the model and the optimizer that prepare_training_attr"):
        server._load_model_from_checkpoint()


def test_random_numbers_go_on_after_a_checkpoint(server):
    def draw():
        return [
            torch.rand(3).tolist(),
            np.random.rand(3).tolist(),
            random.gauss(),
            np.random.standard_normal(),
        ]

    server.model, server.optimizer = torch.nn.Linear(2, 1), None
    random.gauss()  # makes two, and keeps one for the next call
    np.random.standard_normal()
    server.checkpoint(3)
    expected = draw()
    server._load_model_from_checkpoint()
    draw()
    server.train = lambda: None
    server._run_train()  # the states are taken up here, after all that is drawn in the preparation
    assert draw() == expected


def test_the_optimizer_follows_the_model_to_the_device():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adagrad(model.parameters())  # has a state from the start
    parameters = list(model.parameters())
    for state in optimizer.state.values():
        state["sum"] = state["sum"].double()
    prepare_model(model, optimizer, torch.device("cpu"))
    assert list(model.parameters()) == optimizer.param_groups[0]["params"] == parameters
    # Without a second device: what takes the state to a parameter's device takes it to its dtype as well.
    assert {state["sum"].dtype for state in optimizer.state.values()} == {torch.float32}


def test_a_batch_is_moved_to_the_device_whatever_its_form(server):
    server.device = torch.device("meta")
    inputs, fields, names = server.to_device((torch.ones(2), {"u": torch.ones(2, 3)}, ["a", "b"]))
    assert inputs.device.type == fields["u"].device.type == "meta"
    assert names == ["a", "b"]


def test_to_drain_all_ranks_needs_the_predefined_loop(server, monkeypatch):
    class Own(type(server)):
        def train(self):
            pass

    own = Own(server.config_dict)
    own.dl_config["drain"] = "all"
    own._check_drain()
    monkeypatch.setattr(own, "comm_size", 2)
    with pytest.raises(UnsupportedConfiguration, match="Own has a train of its own"):
        own._check_drain()


@contextmanager
def files_of_at_most(nb_bytes):
    """A disk that has room for so much of a file; the interpreter ignores the signal of it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nb_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("width", [2, 100_000])
def test_a_disk_that_is_full_costs_the_checkpoint_and_leaves_the_old_one(server, tmp_path, caplog, width):
    server.model, server.optimizer = torch.nn.Linear(width, 1), None
    server.checkpoint(3)
    written = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    with files_of_at_most(1000):
        server.checkpoint(4)
        # Of the state of the whole server its writer looks after the model: it has to know.
        with pytest.raises(CheckpointError, match=r"model\.pt cannot be written"):
            server._checkpoint_model(tmp_path / "4" / "rank0")
    assert "the model was not saved after batch 4" in caplog.text
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == written
    assert torch.load(tmp_path / "checkpoints" / "model.pt", weights_only=True)["batch"] == 3
    assert list((tmp_path / "4" / "rank0").iterdir()) == []


def test_the_echo_of_another_ranks_end_says_that_it_is_one(server, monkeypatch):
    def train():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:4711")

    monkeypatch.setattr(server, "train", train)
    monkeypatch.setattr(server, "comm_size", 2)
    monkeypatch.setattr(TorchServer, "PATIENCE", 0.01)
    with pytest.raises(TrainingError, match=r"rank 0 has lost the connection .* Connection closed by peer"):
        server._run_train()
    # The failure itself, once it is known, is told in the place of its echo.
    server._ending.fail(FatalError("server rank 1 has died"))
    with pytest.raises(FatalError, match="rank 1 has died"):
        server._run_train()


def test_importing_it_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from melissa.server.deep_learning.torch_server import TorchServer\n"
        "from melissa.server.deep_learning.tensorboard import TorchTensorboardLogger"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class FullyShardedDataParallel(torch.nn.Linear):
    """Known by its name; one rank alone that asks for all weights waits for ever."""

    def state_dict(self, *arguments, **options):
        raise AssertionError("one rank asked for all weights")


def sharded(server, **hooks):
    hooks = {"prepare_training_attributes": lambda self: (FullyShardedDataParallel(2, 1), None)} | hooks
    return type("Sharded", (type(server),), hooks)(server.config_dict)


def nothing(self, *arguments):
    """A hook of the study's class."""


def test_a_sharded_model_that_the_server_cannot_save_is_refused_at_the_start(server):
    with pytest.raises(UnsupportedConfiguration, match=r"Sharded needs a checkpoint\(batch_idx, path\)"):
        sharded(server)._make_model()
    missing = r"Sharded needs _checkpoint_model\(folder\) and _restore_model\(folder\) of its own"
    with pytest.raises(UnsupportedConfiguration, match=missing):
        sharded(server, checkpoint=nothing)._make_model()
    with pytest.raises(UnsupportedConfiguration, match=r"Sharded needs _restore_model\(folder\) of its own"):
        sharded(server, checkpoint=nothing, _checkpoint_model=nothing)._make_model()
    sharded(server, checkpoint=nothing, _checkpoint_model=nothing, _restore_model=nothing)._make_model()


def test_a_sharded_model_goes_without_checkpoints_of_the_server_if_the_class_says_so(server, tmp_path):
    without = sharded(server, checkpoint=nothing)
    without.checkpoint_interval = 0
    without._make_model()
    # One that is asked for by a signal costs itself only.
    with pytest.raises(CheckpointError, match="the model is sharded: Sharded needs a _checkpoint_model"):
        without._checkpoint_model(tmp_path)
