"""Reading the configuration of a study: a file becomes a plain dictionary that is complete and valid."""

import difflib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import rapidjson
from pydantic import ValidationError

from melissa.exceptions import ConfigurationFileError, UnsupportedConfiguration
from melissa.launcher import paths
from melissa.launcher.defaults import merge_defaults
from melissa.launcher.json_file import read_json
from melissa.launcher.options import expectation
from melissa.launcher.rules import Problem, rule_problems
from melissa.launcher.schema import (
    DlConfig,
    LauncherConfig,
    Section,
    StudyConfig,
    StudyOptions,
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

    The dictionary is plain and mutable. Every known key is in it, with its default where the file has none
    (None where there is no default either); only ``dl_config`` as a whole may be absent. Old spellings stay,
    and stand beside the new ones; unknown keys are kept. ``server_filename`` and ``output_dir`` are absolute
    paths, and strftime codes are evaluated.

    Parameters
    ----------
    path_or_name
        The file, with or without ``.json``; a relative one is looked for in the project's folder, if that is
        given, and in the working directory.
    project_dir
        Where relative paths of the configuration start; by default the folder of the file.
    output_dir
        The study's output folder when it has been made already, so that strftime codes have their values.

    Raises
    ------
    ConfigurationFileError
        The file cannot be found or read, or is wrong: the text has every problem, with path, value and what
        was expected.
    UnsupportedConfiguration
        All values are valid, but what they ask for together cannot work.
    """
    config_path = _find(path_or_name, Path(project_dir) if project_dir is not None else None)
    folder = Path(project_dir).absolute() if project_dir is not None else config_path.parent
    config, repeated_keys = read_json(config_path)
    for key in repeated_keys:
        logger.warning('%s has "%s" twice in one object: the last one counts.', config_path, key)
    problems = [*_unify_spellings(config), *_value_problems(config), *_rule_problems(config)]
    if not problems:
        _warn_of_misspelt_keys(config)
        _write_whole_numbers(config)
        merge_defaults(config)
        problems += _resolve_paths(config, folder, output_dir)
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
    nearest = _nearest(given.name.removesuffix(".json"), (name.removesuffix(".json") for name in others), 0.6)
    if nearest is not None:
        advice = f'Is "{nearest}.json" meant?'
    elif others:
        advice = f"JSON files there: {', '.join(others[:10])}."
    else:
        advice = "There is no JSON file in that folder."
    raise ConfigurationFileError(f'No configuration "{given}". Looked for {tried}. {advice}')


def _unify_spellings(config: dict[str, Any]) -> Iterator[Problem]:
    """Put today's name beside each old one; yield those that have two values."""
    for prefix, model, section in _sections(config):
        for name, field in model.model_fields.items():
            old = key_note(field, "old")
            if old is None:
                continue
            if name in section and old in section and section[name] != section[old]:
                yield Problem(
                    f"{prefix}{name}",
                    f"{_shown(section[name])} given, and {_shown(section[old])} under its old name {old}. "
                    "Remove one of them.",
                )
            elif old in section:
                section[name] = section[old]


def _sections(config: dict[str, Any]) -> Iterator[tuple[str, type[Section], dict[str, Any]]]:
    """Yield the configuration's objects, each with the prefix of its keys' paths and its model."""
    yield "", StudyConfig, config
    for name, field in StudyConfig.model_fields.items():
        model, section = section_of(field), config.get(name)
        if model is not None and isinstance(section, dict):
            yield f"{name}.", model, section


def _value_problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with single values: at most one problem for each."""
    try:
        StudyConfig.model_validate(config)
    except ValidationError as error:
        seen = set()
        for detail in error.errors(include_url=False):
            problem = _value_problem(config, detail["loc"], detail["type"] == "missing")
            if problem.path not in seen:
                seen.add(problem.path)
                yield problem


def _value_problem(config: dict[str, Any], location: tuple[int | str, ...], missing: bool) -> Problem:
    """Describe the error at the keys and list positions `location`; the last may name a kind of a union."""
    model: type[Section] | None = StudyConfig
    value: Any = config
    section, path, expected, of_items, meaning = config, "", "an object", "an object", ""
    for part in location:
        if isinstance(part, int):
            path, value, expected = f"{path}[{part}]", value[part], of_items
        elif model is not None:
            field, section = model.model_fields[part], value
            path, value = f"{path}.{part}".removeprefix("."), value.get(part)
            expected, of_items = expectation(field), expectation(field, of_items=True)
            meaning, model = field.description or "", section_of(field)
    if missing:
        advice = _advice(config, section, str(location[-1]))
        return Problem(path, f"missing; expected {expected}: {meaning}.{advice}")
    return Problem(path, f"{_shown(value)} given, expected {expected}.")


def _advice(config: dict[str, Any], section: dict[str, Any], name: str) -> str:
    """Say where the value of a missing key may be: under a misspelt name, or in another section."""
    for prefix, model, other in _sections(config):
        if other is section:
            if nearest := _nearest(name, _unknown_keys(model, other), cutoff=0.6):
                return f' Is "{nearest}" meant for it?'
        elif name in other and name not in model.model_fields:
            return f" It is there as {prefix}{name}."
    return ""


def _unknown_keys(model: type[Section], section: dict[str, Any]) -> list[str]:
    old = {key_note(field, "old") for field in model.model_fields.values()}
    return [key for key in section if key not in model.model_fields and key not in old]


def _nearest(name: str, candidates: Iterable[str], cutoff: float) -> str | None:
    """Return the candidate that is most like the name; case, hyphens and underscores do not count."""
    by_letters = {_letters(candidate): candidate for candidate in candidates}
    found = difflib.get_close_matches(_letters(name), by_letters, n=1, cutoff=cutoff)
    return by_letters[found[0]] if found else None


def _letters(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def _shown(value: Any) -> str:
    text = str(rapidjson.dumps(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _warn_of_misspelt_keys(config: dict[str, Any]) -> None:
    for prefix, model, section in _sections(config):
        for key in _unknown_keys(model, section):
            nearest = _nearest(key, [name for name in model.model_fields if name not in section], cutoff=0.8)
            if nearest is not None:
                logger.warning(
                    '%s%s is unknown, and passed on to your class. Is "%s" meant?', prefix, key, nearest
                )
            else:
                logger.debug("%s%s is unknown, and passed on to the server's class.", prefix, key)


def _rule_problems(config: dict[str, Any]) -> Iterator[Problem]:
    return rule_problems(
        _validated(StudyOptions, config.get("study_options")),
        _validated(DlConfig, config.get("dl_config")),
        _validated(LauncherConfig, config.get("launcher_config", {})),
    )


def _validated(model: type[SectionT], section: Any) -> SectionT | None:
    try:
        return model.model_validate(section)
    except ValidationError:
        return None


def _write_whole_numbers(config: dict[str, Any]) -> None:
    """Put 1000 where a valid configuration has ``1e3`` for a whole number."""
    for _, model, section in _sections(config):
        valid = model.model_validate(section)
        for name in model.model_fields.keys() & section.keys():
            if isinstance(section[name], float) and isinstance(value := getattr(valid, name), int):
                section[name] = value


def _resolve_paths(
    config: dict[str, Any], project_dir: Path, output_dir: str | Path | None
) -> Iterator[Problem]:
    """Expand variables and make paths absolute, in place; yield what is not there."""
    try:
        server_file = paths.absolute_path(paths.expand(config["server_filename"], os.environ), project_dir)
    except paths.UndefinedVariableError as error:
        yield _undefined("server_filename", config["server_filename"], error)
    else:
        config["server_filename"] = str(server_file)
        if not server_file.is_file():
            scripts = sorted(path.name for path in server_file.parent.glob("*.py"))
            nearest = _nearest(server_file.name, scripts, cutoff=0.6)
            advice = f' Is "{nearest}" meant?' if nearest else ""
            yield Problem("server_filename", f"{server_file} is not there.{advice}")

    if output_dir is not None:
        config["output_dir"] = str(Path(output_dir).absolute())
    else:
        try:
            template = paths.expand(config["output_dir"], os.environ)
        except paths.UndefinedVariableError as error:
            yield _undefined("output_dir", config["output_dir"], error)
        else:
            folder = paths.output_directory(template, project_dir, datetime.now())
            config["output_dir"] = str(folder)
            if folder.exists() and not folder.is_dir():
                yield Problem("output_dir", f"{folder} is there and is no folder.")

    yield from _resolve_command(config["client_config"], project_dir)


def _resolve_command(client_config: dict[str, Any], project_dir: Path) -> Iterator[Problem]:
    command, preprocessing = client_config["executable_command"], client_config["preprocessing_commands"]

    def left_to_the_shell(name: str) -> bool:
        return bool(preprocessing) or _SET_FOR_JOBS.fullmatch(name) is not None

    try:
        expanded = paths.expand(command, os.environ, keep=left_to_the_shell)
    except paths.UndefinedVariableError as error:
        yield _undefined("client_config.executable_command", command, error)
        return
    client_config["executable_command"] = paths.anchor_command(expanded, project_dir)
    client_config["command_default_args"] = [
        paths.anchor_script(argument, project_dir) if isinstance(argument, str) else argument
        for argument in client_config["command_default_args"]
    ]
    program = paths.missing_program(client_config["executable_command"])
    if program is not None and not preprocessing:
        where = f"in {project_dir}" if "/" in program else "in any folder of PATH"
        yield Problem(
            "client_config.executable_command",
            f'the program "{program}" is not there: no executable file of that name {where}.',
        )


def _undefined(path: str, text: str, error: paths.UndefinedVariableError) -> Problem:
    variables = "the environment variable" if len(error.names) == 1 else "the environment variables"
    return Problem(path, f"{_shown(text)} needs {variables} {error}, not set here.")
