"""Processes: the interpreter that they find, words for how one ended, and the last lines that it said."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

__all__ = ["describe_exit", "find_own_interpreter_first", "last_lines"]

# What a terminal would not show: control sequences (colours, moves, titles), control characters but tab.
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def find_own_interpreter_first() -> None:
    """Let jobs that call ``python`` find this process's virtual environment, activated or not.

    A solver of ``.venv/bin/melissa-launcher`` would else run in another Python, without `melissa_api`.
    """
    if sys.prefix == sys.base_prefix:
        return
    own = str(Path(sys.prefix) / "bin")
    others = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder != own]
    os.environ["PATH"] = os.pathsep.join([own, *others])


def describe_exit(exit_code: int | None) -> str:
    """Say how a process ended: `exit_code` is its status, minus a signal's number, or None when not known."""
    if exit_code is None:
        return "ended in a way that is not known"
    if exit_code >= 0:
        return f"ended with status {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = "unknown"
    hint = " by a user, a limit of the machine, or for want of memory" if name == "SIGKILL" else ""
    return f"was killed by signal {-exit_code} ({name}){hint}"


def last_lines(text: str, count: int) -> str:
    """Return the last `count` lines of what a program wrote, as a terminal would show them at the end.

    Control sequences go; of a line that was overwritten (a progress bar) the last state stays; blank lines
    at the end go.
    """
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip().split("\n")[-count:]]
    return "\n".join(_CONTROL.sub("", line).rstrip() for line in lines)
