"""The shell scripts that run a client: preprocessing commands, then the solver with its parameters."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from melissa.exceptions import FatalError

__all__ = ["ClientScripts", "command_line_token"]

# What a solver's command may not start with, or contain, when `exec` is to run it.
_SHELL_ONLY = re.compile(r"[;&|<>(){}\n`]|\$\(|^\s*(\w+=|!|\.\s)")
_SHELL_WORDS = frozenset(
    {"alias", "bg", "builtin", "case", "cd", "command", "declare", "eval", "exec", "exit", "export", "for"}
    | {"function", "if", "let", "local", "readonly", "return", "set", "shift", "source", "test", "time"}
    | {"times", "trap", "type", "ulimit", "umask", "unset", "until", "wait", "while"}
)
# What `exec` would take away from the preprocessing commands' shell.
_OUTLIVED_BY_SHELL = re.compile(r"\btrap\b|\balias\b|\bfunction\b|\(\s*\)")


def command_line_token(parameter: Any) -> str:
    """Write one drawn parameter as the solver's command line has it.

    Numbers print plainly (0.00001, not 1e-05), in as few digits as give the same number back; integers stay
    integers; strings are as they are: the shell reads their quotes.
    """
    if isinstance(parameter, float | np.floating):
        return np.format_float_positional(parameter, unique=True, trim="0")
    return str(parameter)


class ClientScripts:
    """Writes ``<output_dir>/client_scripts/client.<id>.sh``.

    Preprocessing commands and solver share one shell, started in the output folder with ``MELISSA_SIMU_ID``
    set: ``cd`` and ``export`` hold, and a command that fails does not stop it. The solver takes the shell's
    place where that changes nothing, so that its process is the job.
    """

    def __init__(
        self,
        output_dir: Path,
        command: str,
        default_args: Sequence[Any] = (),
        preprocessing_commands: Sequence[str] = (),
    ) -> None:
        self._output_dir = output_dir.absolute()
        self._folder = self._output_dir / "client_scripts"
        self._command = " ".join([command, *map(command_line_token, default_args)])
        self._preprocessing_commands = list(preprocessing_commands)
        # POSIX sh ends where a command like `.` fails; bash goes on.
        self._shell = shutil.which("bash") or "/bin/sh"

    def path(self, simulation_id: int) -> Path:
        """Return where the script of a simulation is."""
        return self._folder / f"client.{simulation_id}.sh"

    def write(self, simulation_id: int, tokens: Sequence[str]) -> Path:
        """Write the script of a simulation, over an older one, and return its path.

        `FatalError` when that cannot be: the disk is full, say.
        """
        solver = " ".join([self._command, *tokens])
        lines = [
            f"#!{self._shell}",
            f"# Simulation {simulation_id}; written by melissa-server.",
            f"cd {shlex.quote(str(self._output_dir))} || exit 1",
            f"export MELISSA_SIMU_ID={simulation_id} MELISSA_SIM_ID={simulation_id}",
            'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"',
            *self._preprocessing_commands,
            f"exec {solver}" if self._can_exec(solver) else solver,
        ]
        path = self.path(simulation_id)
        unfinished = path.with_suffix(".sh.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
            unfinished.chmod(0o755)
            os.replace(unfinished, path)
        except OSError as error:
            raise FatalError(
                f"cannot write the script of simulation {simulation_id}, {path}: {error.strerror}"
            ) from None
        return path

    def remove(self, simulation_id: int) -> None:
        """Remove the script of a simulation, if it is there."""
        self.path(simulation_id).unlink(missing_ok=True)

    def _can_exec(self, solver: str) -> bool:
        if _SHELL_ONLY.search(solver) or any(map(_OUTLIVED_BY_SHELL.search, self._preprocessing_commands)):
            return False
        words = solver.split(maxsplit=1)
        return bool(words) and words[0] not in _SHELL_WORDS
