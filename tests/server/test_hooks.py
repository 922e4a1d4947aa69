"""Which lane a class's batches take, and what is said of a class that lacks hooks."""

import pytest

from melissa.exceptions import TrainingError, UnsupportedConfiguration
from melissa.server.deep_learning.base_dl_server import DeepMelissaServer
from melissa.server.deep_learning.hooks import check_hooks, choose_lane, sample_checks, train_takes_model
from melissa.server.deep_learning.torch_server import TorchServer


def hook(self, *arguments):
    return None


def server(*names, base=TorchServer, **attributes):
    return type("Study", (base,), dict.fromkeys(names, hook) | attributes)


def test_whole_batches_are_the_fast_lane():
    lane = choose_lane(server("process_simulation_batch"), True)
    assert lane.is_fast
    assert "Study.process_simulation_batch" in lane.reason


def test_single_samples_are_the_view_lane():
    lane = choose_lane(server("process_simulation_data"), True)
    assert not lane.is_fast
    assert "Study.process_simulation_data" in lane.reason


def test_a_class_with_both_takes_the_fast_lane_and_the_log_says_so():
    lane = choose_lane(server("process_simulation_data", "process_simulation_batch"), True)
    assert lane.is_fast
    assert "process_simulation_data serves loops of your own" in lane.reason


def test_the_hook_of_the_most_derived_class_wins():
    fast = server("process_simulation_batch")
    assert not choose_lane(server("process_simulation_data", base=fast), True).is_fast
    slow = server("process_simulation_data")
    assert choose_lane(server("process_simulation_batch", base=slow), True).is_fast


def test_without_a_hook_torch_has_batches_of_its_own_and_the_plain_server_asks_for_one():
    assert choose_lane(server(), True).is_fast
    with pytest.raises(
        TrainingError, match=r"Study .*lacks process_simulation_data(.|\n)*process_simulation_batch"
    ):
        choose_lane(server(base=DeepMelissaServer), False)


@pytest.mark.parametrize("name", ["_validate_data", "_process_partial_data_reception"])
def test_checks_of_single_samples_make_it_the_slow_lane(name):
    cls = server(name, "process_simulation_data", "process_simulation_batch")
    lane = choose_lane(cls, True)
    assert not lane.is_fast
    assert "slow" in lane.reason
    assert sample_checks(cls) == (name,)
    with pytest.raises(UnsupportedConfiguration, match=f"{name}.*process_simulation_batch"):
        choose_lane(server(name, "process_simulation_batch"), True)


@pytest.mark.parametrize(
    "names",
    [
        ("prepare_training_attributes", "training_step"),
        ("set_model", "training_step"),
        ("prepare_training_attributes", "train"),
        ("train",),
    ],
)
def test_a_complete_generation_of_hooks_passes(names):
    check_hooks(server(*names, train=lambda self: None) if "train" in names else server(*names))


def test_a_generation_of_2023_passes():
    cls = server("set_model", "configure_data_collection", train=lambda self, model: None)
    assert train_takes_model(cls)
    check_hooks(cls)


@pytest.mark.parametrize(
    ("cls", "missing"),
    [
        (server(), ["prepare_training_attributes", "training_step"]),
        (server("training_step"), ["prepare_training_attributes"]),
        (server("prepare_training_attributes"), ["training_step"]),
        (server(train=lambda self, model: None), ["set_model"]),
    ],
)
def test_what_is_missing_is_named_with_the_class(cls, missing):
    with pytest.raises(TrainingError) as error:
        check_hooks(cls)
    for name in ["class Study", *missing]:
        assert name in str(error.value)


def test_a_train_with_options_of_its_own_takes_no_model():
    assert not train_takes_model(server(train=lambda self, verbose=False: None))
    assert not train_takes_model(TorchServer)
