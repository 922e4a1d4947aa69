"""Values of a configuration: defaults, both spellings, and errors with path, value and expectation."""

import os
import re

import pytest

from melissa.exceptions import ConfigurationFileError, UnsupportedConfiguration
from melissa.launcher.config import load_config
from melissa.launcher.options import options
from melissa.launcher.schema import DlConfig, StudyConfig, section_of


def problems(file) -> dict[str, str]:
    with pytest.raises(ConfigurationFileError) as caught:
        load_config(file)
    heading, *lines = str(caught.value).splitlines()
    assert heading.startswith(f"{file}: {len(lines)} problem")
    return dict(line.strip().split(": ", 1) for line in lines)


def test_every_known_key_is_there_and_has_its_default(write):
    config, _, _ = load_config(write())
    for name, field in StudyConfig.model_fields.items():
        model = section_of(field)
        if model is not None:
            assert config[name].keys() >= model.model_fields.keys()
        else:
            assert name in config
    assert config["dl_config"]["tensorboard"] is True
    assert config["dl_config"]["pseudo_epochs"] == 1
    assert config["study_options"]["crashes_before_redraw"] == 1000
    assert config["launcher_config"]["server_timeout"] == 60
    assert config["server_config"] == {"preprocessing_commands": []}


def test_defaults_that_follow_from_others(write):
    config, _, _ = load_config(write({"dl_config.nb_batches_update": 7}))
    assert config["dl_config"]["checkpoint_interval"] == 7
    assert config["launcher_config"]["job_limit"] == len(os.sched_getaffinity(0)) + 1
    config, _, _ = load_config(write({"dl_config.checkpoint_interval": 3}))
    assert config["dl_config"]["checkpoint_interval"] == 3


def test_a_study_without_deep_learning_has_no_dl_config(write):
    assert "dl_config" not in load_config(write(without=("dl_config",)))[0]


@pytest.mark.parametrize(
    ("section", "new", "old"),
    [
        ("study_options", "nb_time_steps", "num_samples"),
        ("dl_config", "nb_batches_update", "n_batches_update"),
    ],
)
def test_both_spellings_are_there_whichever_is_given(write, section, new, old):
    for given in (new, old):
        config, _, _ = load_config(write({f"{section}.{given}": 42}))
        assert config[section][new] == config[section][old] == 42


def test_two_values_for_one_setting_are_refused(write):
    file = write({"dl_config.nb_batches_update": 5, "dl_config.n_batches_update": 6})
    assert "5 given, and 6 under its old name" in problems(file)["dl_config.nb_batches_update"]


def test_values_of_2023_stay_as_they_are(write):
    config, _, _ = load_config(write({"dl_config.buffer": "SimpleQueue", "dl_config.zmq_hwm": 10}))
    assert config["dl_config"]["buffer"] == "SimpleQueue"
    assert config["dl_config"]["zmq_hwm"] == 10


def test_a_whole_number_may_be_written_as_1e3(write):
    config, _, _ = load_config(write({"study_options.parameter_sweep_size": 1e3}))
    assert config["study_options"]["parameter_sweep_size"] == 1000
    assert type(config["study_options"]["parameter_sweep_size"]) is int


def test_all_problems_are_told_at_once_with_path_value_and_expectation(write):
    found = problems(
        write(
            {
                "study_options.parameter_sweep_size": 0,
                "study_options.field_names": ["temperature", 3],
                "study_options.seed": -1,
                "dl_config.batch_size": "ten",
                "dl_config.buffer": "Lifo",
                "launcher_config.job_limit": 1,
                "launcher_config.fault_tolerance": 1,
                "client_config.command_default_args": "--fast",
                "server_config": [],
            }
        )
    )
    assert found == {
        "study_options.parameter_sweep_size": "0 given, expected a whole number, at least 1.",
        "study_options.field_names[1]": "3 given, expected a string, not empty.",
        "study_options.seed": "-1 given, expected a whole number, at least 0.",
        "dl_config.batch_size": '"ten" given, expected a whole number, at least 1.',
        "dl_config.buffer": '"Lifo" given, expected one of "FIFO", "FIRO", "Reservoir", "BatchReservoir", '
        '"SimPairedReservoir", "SimpleQueue".',
        "launcher_config.job_limit": "1 given, expected a whole number, at least 2, or null.",
        "launcher_config.fault_tolerance": "1 given, expected true or false.",
        "client_config.command_default_args": '"--fast" given, expected a list of strings and numbers.',
        "server_config": "[] given, expected an object.",
    }


def test_a_problem_of_values_and_a_problem_between_keys_are_told_together(write):
    found = problems(write({"study_options.seed": "x", "dl_config.per_server_watermark": 60}))
    assert found.keys() == {"study_options.seed", "dl_config.per_server_watermark"}


def test_a_missing_key_is_named_with_its_meaning(write):
    found = problems(write(without=("dl_config.batch_size", "client_config")))
    assert found["dl_config.batch_size"] == (
        "missing; expected a whole number, at least 1: samples per batch and server rank."
    )
    assert found["client_config"].startswith("missing; expected an object")


def test_a_missing_key_that_is_there_under_another_name_is_recognised(write):
    found = problems(write({"dl_config.bacth_size": 3}, without=("dl_config.batch_size",)))
    assert 'Is "bacth_size" meant for it?' in found["dl_config.batch_size"]
    found = problems(write({"study_options.batch_size": 3}, without=("dl_config.batch_size",)))
    assert "It is there as study_options.batch_size." in found["dl_config.batch_size"]


@pytest.mark.parametrize(
    ("misspelt", "known"),
    [
        ("dl_config.pseudo_epoch", "pseudo_epochs"),
        ("launcher_config.jobLimit", "job_limit"),
        ("dl_confg", "dl_config"),
    ],
)
def test_an_unknown_key_like_a_known_one_is_kept_and_warned_of(write, caplog, misspelt, known):
    section, _, name = misspelt.rpartition(".")
    config, _, _ = load_config(write({misspelt: {"mine": 2}}, without=("dl_config",) if not section else ()))
    assert (config[section] if section else config)[name] == {"mine": 2}
    assert f'{misspelt} is unknown, and passed on to your class. Is "{known}" meant?' in caplog.text


def test_an_unknown_key_of_the_user_passes_silently(write, caplog):
    mine = {"learning_rate": 1e-3, "valid_batch_size": 10, "l_bounds": [0, 1]}
    config, _, _ = load_config(write({f"dl_config.{name}": value for name, value in mine.items()}))
    assert mine.items() <= config["dl_config"].items()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def rule(write, path, changes, *numbers, without=()):
    file = write(changes, without=without)
    with pytest.raises(UnsupportedConfiguration) as caught:
        load_config(file)
    text = problems(file)[path]
    for number in numbers:
        assert re.search(rf"(?<!\d){number}(?!\d)", text), text
    return caught.value


def test_a_watermark_above_the_capacity_is_refused(write):
    rule(write, "dl_config.per_server_watermark", {"dl_config.per_server_watermark": 51}, 51, 50)
    load_config(write({"dl_config.per_server_watermark": 50}))


def test_a_firo_watermark_must_be_below_the_capacity(write):
    changes = {"dl_config.buffer": "FIRO", "dl_config.per_server_watermark": 50}
    rule(write, "dl_config.per_server_watermark", changes, 50)
    load_config(write(changes | {"dl_config.per_server_watermark": 49}))


def test_a_batch_reservoir_holds_a_batch(write):
    changes = {"dl_config.buffer": "BatchReservoir", "dl_config.batch_size": 51}
    rule(write, "dl_config.batch_size", changes, 51, 50)
    load_config(write(changes | {"dl_config.batch_size": 50}))


def test_a_watermark_that_cannot_be_reached_is_refused_with_both_numbers(write):
    rule(write, "dl_config.per_server_watermark", {"study_options.nb_time_steps": 1}, 20, 10)
    load_config(write({"study_options.nb_time_steps": 2}))


def test_samples_are_counted_for_each_server_rank(write):
    ranks = {"launcher_config.scheduler": "openmpi", "launcher_config.scheduler_arg_server": ["-n", "2"]}
    steps = {"study_options.nb_time_steps": 3}
    rule(write, "dl_config.per_server_watermark", ranks | steps, 20, 15, 2)
    load_config(write(ranks | {"study_options.nb_time_steps": 4}))


def test_a_server_has_the_job_limit_that_its_launcher_decided_on(write, monkeypatch):
    monkeypatch.setenv("MELISSA_JOB_LIMIT", "17")
    assert load_config(write())[0]["launcher_config"]["job_limit"] == 17
    assert load_config(write({"launcher_config.job_limit": 5}))[0]["launcher_config"]["job_limit"] == 5


def test_the_number_of_server_ranks_must_follow_from_the_arguments(write):
    by_node = {"launcher_config.scheduler": "openmpi", "launcher_config.scheduler_arg": ["-N", "2"]}
    found = problems(write(by_node))
    assert "does not follow from ['-N', '2']" in found["launcher_config.scheduler_arg_server"]
    load_config(write(by_node | {"launcher_config.scheduler_arg_server": ["-n", "4"]}))


def test_every_kind_but_fifo_needs_a_watermark(write):
    found = problems(write(without=("dl_config.per_server_watermark",)))
    assert found["dl_config.per_server_watermark"].startswith("missing; a Reservoir buffer needs it")
    load_config(write({"dl_config.buffer": "FIFO"}, without=("dl_config.per_server_watermark",)))


def test_pseudo_epochs_need_firo_a_known_number_of_steps_and_room_for_all(write):
    epochs = {"dl_config.pseudo_epochs": 3, "study_options.nb_time_steps": 5}
    rule(write, "dl_config.pseudo_epochs", epochs)
    firo = epochs | {"dl_config.buffer": "FIRO"}
    rule(write, "study_options.nb_time_steps", firo | {"study_options.nb_time_steps": None}, 3)
    rule(write, "dl_config.buffer_size", firo | {"dl_config.buffer_size": 49}, 49, 50)
    load_config(write(firo))
    load_config(write(firo, without=("dl_config.per_server_watermark",)))


def test_groups_are_refused_beside_deep_learning_only(write):
    rule(write, "study_options.group_size", {"study_options.group_size": 2}, 2)
    load_config(write({"study_options.group_size": 2}, without=("dl_config",)))


def test_what_is_not_in_this_version_is_refused(write):
    rule(write, "launcher_config.scheduler", {"launcher_config.scheduler": "oar"})
    rule(write, "dl_config.buffer", {"dl_config.buffer": "SimPairedReservoir"})


def test_a_field_name_stands_once(write):
    found = problems(write({"study_options.field_names": ["u", "v", "u"]}))
    assert found["study_options.field_names"].startswith("u: more than once")


def test_every_option_is_described():
    described = list(options())
    assert len(described) > len(DlConfig.model_fields)
    for option in described:
        assert option.meaning
        assert option.kind
        assert option.default
