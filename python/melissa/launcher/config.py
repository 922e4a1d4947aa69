"""Reading the configuration of a study: a file becomes a plain dictionary that is complete and valid."""

import copy
import difflib
import logging
import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import rapidjson
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from melissa.exceptions import ConfigurationFileError, UnsupportedConfiguration
from melissa.launcher import paths
from melissa.launcher.json_file import read_json
from melissa.launcher.options import expectation
from melissa.launcher.rules import Problem, rule_problems
from melissa.launcher.schema import (
    DlConfig,
    LauncherConfig,
    Section,
    StudyConfig,
    StudyOptions,
    default_job_limit,
    key_note,
    section_of,
)

__all__ = ["load_config"]

logger = logging.getLogger("melissa")

SectionT = TypeVar("SectionT", bound=Section)

# Set by the launcher in the environment of each job, so a command may use them before they exist.
_SET_FOR_JOBS = re.compile(r"MELISSA_\w+|OMP_NUM_THREADS")


def load_config(
    path_or_name: str | Path,
    project_dir: str | Path | None = None,
    *,
    output_dir: str | Path | None = None,
) -> tuple[dict[str, Any], Path, Path]:
    """Read and validate a configuration; return it, its file and the project's folder, both absolute.

    The dictionary is plain and mutable. Every known key is in it, with its default where the file has none (None where
    there is no default either); old spellings stay, and stand beside the new ones. Unknown keys are kept.
    ``server_filename`` and ``output_dir`` are absolute paths, the latter without strftime codes any more.

    Parameters
    ----------
    path_or_name
        The file, with or without ``.json``; a relative one is looked for in the project's folder, if that is given,
        and in the working directory.
    project_dir
        Where relative paths of the configuration start; by default the folder of the file.
    output_dir
        The study's output folder when it has been made already, so that strftime codes are not evaluated again.

    Raises
    ------
    ConfigurationFileError
        The file cannot be found or read, or is wrong: the text has every problem, with path, value and expectation.
    UnsupportedConfiguration
        All values are valid, but what they ask for together cannot work.
    """
    config_path = _find(path_or_name, Path(project_dir) if project_dir is not None else None)
    folder = Path(project_dir).absolute() if project_dir is not None else config_path.parent
    config, repeated_keys = read_json(config_path)
    for key in repeated_keys:
        logger.warning('%s has "%s" twice in one object: the last one counts.', config_path, key)
    problems = list(_complete(config))
    problems += _resolve(config, folder, output_dir)
    if problems:
        heading = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        text = "\n".join(f"  {problem.path}: {problem.text}" for problem in problems)
        unsupported = all(problem.unsupported for problem in problems)
        kind = UnsupportedConfiguration if unsupported else ConfigurationFileError
        raise kind(f"{config_path}: {heading}\n{text}")
    return config, config_path, folder


def _find(path_or_name: str | Path, project_dir: Path | None) -> Path:
    given = Path(path_or_name).expanduser()
    folders = [Path()] if project_dir is None else [project_dir, Path()]
    candidates = [folder / name for folder in folders for name in (given, Path(f"{given}.json"))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.absolute()
    tried = ", ".join(str(c.absolute()) for c in dict.fromkeys(candidates))
    folder = candidates[0].parent
    if not folder.is_dir():
        raise ConfigurationFileError(f'No configuration "{given}": there is no folder {folder.absolute()}.')
    others = sorted(path.name for path in folder.glob("*.json"))
    nearest = difflib.get_close_matches(given.name, others, n=1)
    if nearest:
        advice = f'Is "{nearest[0]}" meant?'
    elif others:
        advice = f"JSON files there: {', '.join(others[:10])}."
    else:
        advice = "There is no JSON file in that folder."
    raise ConfigurationFileError(f'No configuration "{given}". Looked for {tried}. {advice}')


def _complete(config: dict[str, Any]) -> Iterator[Problem]:
    """Validate the configuration, in place: fill in defaults and both spellings; yield what is wrong."""
    yield from _complete_section(config, StudyConfig, "", nested=False)
    sections: dict[str, Section | None] = {}
    for name, field in StudyConfig.model_fields.items():
        model = section_of(field)
        value = config.get(name)
        if model is None or (value is None and (name not in config or not field.is_required())):
            continue
        if isinstance(value, dict):
            problems = list(_complete_section(value, model, f"{name}."))
            yield from problems
            sections[name] = None if problems else model.model_construct(**value)
    yield from rule_problems(
        _section(sections, "study_options", StudyOptions),
        _section(sections, "dl_config", DlConfig),
        _section(sections, "launcher_config", LauncherConfig),
    )
