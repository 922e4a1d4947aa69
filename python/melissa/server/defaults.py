"""The defaults of a configuration, for servers that are constructed with a dictionary of a user's own."""

from __future__ import annotations

import copy
from typing import Any

from melissa.launcher.schema import Section, StudyConfig, default_job_limit, key_note, section_of

__all__ = ["merge_defaults"]


def merge_defaults(config_dict: dict[str, Any]) -> None:
    """Put the default of every absent key into `config_dict`, and both spellings of keys that have two.

    A configuration that `melissa.launcher.config.load_config` has read is complete and stays as it is.
    ``dl_config`` is not made: a study has one or none. Values are not validated here.
    """
    for name, field in StudyConfig.model_fields.items():
        model = section_of(field)
        if model is None:
            if not field.is_required():
                config_dict.setdefault(name, copy.deepcopy(field.default))
        elif isinstance(config_dict.get(name), dict) or field.default is not None:
            _merge_section(config_dict.setdefault(name, {}), model)
    launcher_config, dl_config = config_dict["launcher_config"], config_dict.get("dl_config")
    if launcher_config["job_limit"] is None:
        launcher_config["job_limit"] = default_job_limit(launcher_config["scheduler"])
    if dl_config and dl_config["checkpoint_interval"] is None:
        dl_config["checkpoint_interval"] = dl_config["nb_batches_update"]


def _merge_section(section: dict[str, Any], model: type[Section]) -> None:
    for name, field in model.model_fields.items():
        old = key_note(field, "old")
        if name not in section:
            if old is not None and old in section:
                section[name] = section[old]
            elif not field.is_required():
                section[name] = copy.deepcopy(field.default)
        if old is not None and name in section:
            section.setdefault(old, section[name])
