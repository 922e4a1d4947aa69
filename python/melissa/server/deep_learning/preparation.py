"""What is done before a client is asked for: a study that cannot work is to say so before it costs anything.

The configuration is checked against the class, the environment of the framework is set up, and the model is
made. Every rank does all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from melissa.exceptions import ConfigurationFileError, TrainingError, UnsupportedConfiguration
from melissa.server.deep_learning.hooks import (
    check_hooks,
    check_validation,
    choose_lane,
    is_overridden,
)
from melissa.server.deep_learning.tensorboard import check_conversion

if TYPE_CHECKING:
    from melissa.server.deep_learning.base_dl_server import DeepMelissaServer

__all__ = ["check_drain", "check_group_size", "make_model", "prepare", "training_section"]


def training_section(config_dict: dict[str, Any], class_name: str) -> dict[str, Any]:
    """Return ``dl_config`` of a configuration; `ConfigurationFileError` where something is missing."""
    section = config_dict.get("dl_config")
    if not isinstance(section, dict):
        raise ConfigurationFileError(
            f'the configuration has no "dl_config": {class_name} trains, so it needs batch_size and '
            "buffer_size"
        )
    missing = [name for name in ("batch_size", "buffer_size") if section.get(name) is None]
    if missing:
        raise ConfigurationFileError(
            f"dl_config has no {' and no '.join(missing)}: a server that trains needs them"
        )
    return section


def prepare(server: DeepMelissaServer) -> None:
    """Do all that can fail before a client is asked for."""
    server._needed_link()
    if server._fast_dev_run is not None:
        server._fast_dev_run.shorten(server)
    check_hooks(type(server))
    server._ending.has_own_loop = is_overridden(type(server), "train")
    if not server._ending.has_own_loop:
        choose_lane(type(server), server._has_default_batch)
    server._check_group_size()
    if server._parameter_sampler is None and not is_overridden(type(server), "draw_parameters"):
        raise TrainingError(server._no_sampler())
    server._expectations()
    server._check_drain()
    if server._nb_validation and server.rank == 0:
        check_validation(type(server), server._nb_validation)
        server._prepare_validation()
    if server.dl_config["convert_log_to_df"]:
        check_conversion()
    if server.setup_slurm_ddp:
        server._setup_environment_slurm()
    else:
        server.setup_environment()
    server.tb_logger  # noqa: B018  # made here: set_model and its like may log
    server._make_model()


def check_group_size(server: DeepMelissaServer) -> None:
    """Check that each simulation is a group of its own; `UnsupportedConfiguration` otherwise."""
    group_size = server.study_options["group_size"]
    if group_size != 1:
        raise UnsupportedConfiguration(
            f"study_options.group_size is {group_size}: deep learning needs groups of 1 simulation"
        )


def check_drain(server: DeepMelissaServer) -> None:
    """Check that the server can drain as the configuration asks; `UnsupportedConfiguration` otherwise."""
    if server.dl_config["drain"] == "all" and not server._can_drain_all:
        raise UnsupportedConfiguration(
            f'dl_config.drain is "all", which {type(server).__name__} cannot do: it needs uneven inputs to '
            'be joined, as torch can; set it to "first", or derive the class from TorchServer'
        )


def make_model(server: DeepMelissaServer) -> None:
    """Take model and optimizer from the hook of the class's generation; a loop of its own needs none."""
    if is_overridden(type(server), "prepare_training_attributes"):
        attributes = server.prepare_training_attributes()
        if not isinstance(attributes, tuple | list) or len(attributes) != 2:
            raise TrainingError(
                f"{type(server).__name__}.prepare_training_attributes must return (model, optimizer), but "
                f"returned {attributes!r:.200}"
            )
        server._model, server._optimizer = attributes
    elif is_overridden(type(server), "set_model"):
        cast(Any, server).set_model()
