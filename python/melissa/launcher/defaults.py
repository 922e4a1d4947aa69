"""Filling in what a configuration leaves out."""

import copy
import os
from typing import Any

from melissa.launcher.schema import Section, StudyConfig, key_note, section_of
from melissa.scheduler.factory import default_job_limit

__all__ = ["merge_defaults"]


def merge_defaults(config: dict[str, Any]) -> None:
    """Put the default of every absent key into the configuration, and both spellings of keys that have two.

    Keys that are required stay absent, and so does ``dl_config`` as a whole: a study has one or has none.
    Nothing is validated. A configuration that is complete stays as it is.
    """
    _merge_section(config, StudyConfig)
    for name, field in StudyConfig.model_fields.items():
        model = section_of(field)
        if isinstance(field.default, Section):
            config.setdefault(name, {})
        if model is not None and isinstance(config.get(name), dict):
            _merge_section(config[name], model)
    launcher_config, dl_config = config["launcher_config"], config.get("dl_config")
    if launcher_config["job_limit"] is None:
        # A server that its scheduler has bound to a few cores would count others than its launcher has.
        decided = os.environ.get("MELISSA_JOB_LIMIT", "")
        launcher_config["job_limit"] = (
            int(decided) if decided.isdecimal() else default_job_limit(launcher_config)
        )
    if dl_config is not None and dl_config["checkpoint_interval"] is None:
        dl_config["checkpoint_interval"] = dl_config["nb_batches_update"]


def _merge_section(section: dict[str, Any], model: type[Section]) -> None:
    for name, field in model.model_fields.items():
        if section_of(field) is not None:
            continue
        old = key_note(field, "old")
        if name not in section and old in section:
            section[name] = section[old]
        elif not field.is_required():
            section.setdefault(name, copy.deepcopy(field.default))
        if old is not None and name in section:
            section.setdefault(old, section[name])
