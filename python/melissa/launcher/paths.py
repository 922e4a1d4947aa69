"""Environment variables and relative paths in a configuration."""

import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

__all__ = [
    "UndefinedVariableError",
    "absolute_path",
    "anchor_command",
    "anchor_script",
    "expand",
    "missing_program",
    "output_directory",
]

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=\S*")

# A word without anything that a shell would read as more than its letters.
_PLAIN_WORD = re.compile(r"[\w@%+:,./][\w@%+:,./~-]*")
_SCRIPT_SUFFIXES = frozenset({".jl", ".pl", ".py", ".r", ".rb", ".sh"})
_SHELL_WORDS = frozenset(
    {".", "cd", "command", "eval", "exec", "export", "for", "if", "set", "source", "time", "ulimit", "while"}
)


class UndefinedVariableError(Exception):
    """A text has environment variables that are not set; `names` are theirs."""

    def __init__(self, names: list[str]) -> None:
        """Make the error for these names, without their dollar signs."""
        super().__init__(", ".join(f"${name}" for name in names))
        self.names = names


def _never(name: str) -> bool:
    return False


def expand(text: str, environment: Mapping[str, str], *, keep: Callable[[str], bool] = _never) -> str:
    """Put the values of environment variables, written ``$NAME`` or ``${NAME}``, into the text.

    A variable stays as it is where `keep` says so of its name. `UndefinedVariableError` names the unset ones.
    """
    undefined: list[str] = []

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if keep(name):
            return match[0]
        if name not in environment and name not in undefined:
            undefined.append(name)
        return environment.get(name, match[0])

    expanded = _VARIABLE.sub(value, text)
    if undefined:
        raise UndefinedVariableError(undefined)
    return expanded


def absolute_path(text: str, project_dir: Path) -> Path:
    """Return the path that `text` stands for: relative ones start at the project's folder."""
    return Path(os.path.normpath(project_dir / Path(text).expanduser()))


def output_directory(template: str, project_dir: Path, now: datetime) -> Path:
    """Return the folder of a study's results; `template` may have strftime codes."""
    return absolute_path(now.strftime(template), project_dir)


def anchor_script(word: str, project_dir: Path) -> str:
    """Return a program or script of the project's folder with its whole path, any other word as it is.

    Commands run in the output folder, and relative paths of a configuration start at the project's. Data
    files are left alone: a solver may well be about to write one of that name.
    """
    path = project_dir / word
    if not _PLAIN_WORD.fullmatch(word) or os.path.isabs(word) or not path.is_file():
        return word
    if path.suffix.lower() in _SCRIPT_SUFFIXES or os.access(path, os.X_OK):
        return shlex.quote(os.path.normpath(path))
    return word


def anchor_command(command: str, project_dir: Path) -> str:
    """Apply `anchor_script` to the words of a shell command; a first word that PATH finds is that program."""
    program = _program(command)

    def anchored(match: re.Match[str]) -> str:
        found_by_path = match[0] == program and "/" not in program and shutil.which(program) is not None
        return match[0] if found_by_path else anchor_script(match[0], project_dir)

    return re.sub(r"\S+", anchored, command)


def missing_program(command: str) -> str | None:
    """Return the program that the command starts if it is plainly not there, None otherwise."""
    program = _program(command)
    if program is None or not _PLAIN_WORD.fullmatch(program) or program in _SHELL_WORDS:
        return None
    return None if shutil.which(program) else program


def _program(command: str) -> str | None:
    return next((word for word in command.split() if not _ASSIGNMENT.fullmatch(word)), None)
