"""What the configuration says of jobs: raw arguments and wrappers; and what raw arguments say themselves."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from melissa.scheduler.job import JobKind

__all__ = ["JobOptions", "count_option", "job_options", "names_any"]


@dataclass(frozen=True)
class JobOptions:
    """Raw arguments for the scheduler's command, and a wrapper that is put before the job's own command."""

    arguments: tuple[str, ...] = ()
    wrapper: tuple[str, ...] = ()

    def launched_by(self, programs: Collection[str], default: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the command that starts the ranks, and what stands between it and the job's command.

        A wrapper that is itself one of `programs` (``mpirun``, under whatever path) takes the place of the
        default one.
        """
        if self.wrapper and self.wrapper[0].rpartition("/")[2] in programs:
            return self.wrapper, ()
        return (default,), self.wrapper


def job_options(launcher_config: Mapping[str, Any]) -> dict[JobKind, JobOptions]:
    """Return what `launcher_config` says of the server's job and of the clients'."""
    found = {}
    for kind, name in ((JobKind.SERVER, "server"), (JobKind.CLIENT, "client")):
        command = launcher_config.get(f"scheduler_{name}_command")
        found[kind] = JobOptions(
            (*launcher_config.get("scheduler_arg", ()), *launcher_config.get(f"scheduler_arg_{name}", ())),
            (command, *launcher_config.get(f"scheduler_{name}_command_options", ())) if command else (),
        )
    return found


def _option_values(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option with what may be its value: behind ``=``, behind a short option, or the next word.

    Configurations have them as several strings or in one (``"--ntasks 2"``).
    """
    words = [word for argument in arguments for word in argument.split()]
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        if not word.startswith("-"):
            continue
        name, equals, value = word.partition("=")
        if equals:
            yield name, value
        elif short := re.fullmatch(r"(-[A-Za-z])(\d+)", word):
            yield short[1], short[2]
        else:
            yield name, following


def count_option(arguments: Sequence[str], names: Collection[str]) -> int | None:
    """Return the number that the last of the options `names` has; None where there is none of them."""
    values = [value for name, value in _option_values(arguments) if name in names]
    return int(values[-1]) if values and values[-1].isdecimal() else None


def names_any(arguments: Sequence[str], names: Collection[str]) -> bool:
    """Say whether one of the options `names` is among the arguments."""
    return any(name in names for name, _ in _option_values(arguments))
