"""The console of a study: neither its loss (a closed pipe, a full disk) nor its encoding ends a study."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

from rich.console import Console

__all__ = ["StudyConsole"]


class StudyConsole(Console):
    """A rich console that falls silent, instead of raising, when what it writes to is gone.

    What its encoding lacks it writes as ``?``.
    """

    def __init__(self, **options: Any) -> None:
        """Take the options of `Console`."""
        super().__init__(**options)
        if isinstance(self.file, io.TextIOWrapper):
            self.file.reconfigure(errors="replace")

    def print(self, *objects: Any, **options: Any) -> None:
        """Print like `Console.print`."""
        try:
            super().print(*objects, **options)
        except OSError:
            self.fall_silent()

    def on_broken_pipe(self) -> None:
        """Fall silent, where rich would end the process."""
        self.fall_silent()

    def fall_silent(self) -> None:
        """Write nothing any more; what is buffered goes nowhere, lest the interpreter's end trips over it."""
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.file.fileno())
            os.close(null)
