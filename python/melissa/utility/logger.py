"""The log of a process of the study: logger ``melissa``, to a file and to the terminal.

Lines start ``YYYY-MM-DD HH:MM:SS,mmm``; tools parse them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

__all__ = ["LOGGER_NAME", "ON_TERMINAL", "configure_logger"]

LOGGER_NAME = "melissa"

ON_TERMINAL = {"on_terminal": True}
"""Value for ``extra=`` of a log call whose text the terminal shows already in another way."""

# No square brackets: tools find the parameters in "created client" lines by them.
_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
_NO_LEVEL = logging.CRITICAL + 1


class _TerminalHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever `sys.stderr` is then: a live view redirects it, so that lines appear above it."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(sys.stderr)
        self.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        if self.stream is not None and not getattr(record, "on_terminal", False):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing: with stderr gone no place is left to say so, and a log must not end a study."""


class _StudyFileHandler(logging.Handler):
    """Appends to a file, unbuffered; once that fails (a full disk), says so on stderr and goes on there.

    Records of `terminal_level` and above are on the terminal anyway.
    """

    def __init__(self, path: Path, terminal_level: int) -> None:
        super().__init__()
        self.path = path
        self._terminal_level = terminal_level
        self._fallback = _TerminalHandler()
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            self._give_up(error)

    def setFormatter(self, fmt: logging.Formatter | None) -> None:
        super().setFormatter(fmt)
        self._fallback.setFormatter(fmt)

    def emit(self, record: logging.LogRecord) -> None:
        if self._descriptor is not None:
            try:
                data = (self.format(record) + "\n").encode(errors="backslashreplace")
            except Exception:
                self.handleError(record)
                return
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
                return
            except OSError as error:
                self._give_up(error)
        if record.levelno < self._terminal_level:
            self._fallback.handle(record)

    def _give_up(self, error: OSError) -> None:
        if sys.stderr is not None:
            # Should stderr be gone, too, then no place is left to say it.
            with contextlib.suppress(OSError):
                print(
                    f"cannot write the log {self.path}: {error.strerror}; free space there, or give the next "
                    "study another output_dir; logging goes on on stderr",
                    file=sys.stderr,
                    flush=True,
                )
        self._close_file()

    def _close_file(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            # Some file systems report a full disk only here; what could be written is written.
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def close(self) -> None:
        self._close_file()
        super().close()


def configure_logger(
    file: Path | None, verbosity: int, terminal: bool, terminal_verbosity: int | None = None
) -> logging.Logger:
    """Send the log of this process to `file` (appended to; None: to no file), and to stderr when `terminal`.

    `verbosity` runs from 0 (errors) over 1 (warnings) and 2 (progress) to 3 (everything); the terminal has
    its own when `terminal_verbosity` is given. An earlier configuration is replaced. A file that cannot be
    written never raises: stderr is told once and takes the lines from then on.
    """
    logger = logging.getLogger(LOGGER_NAME)
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    terminal_level = _NO_LEVEL
    if terminal:
        terminal_level = _level(verbosity if terminal_verbosity is None else terminal_verbosity)
        logger.addHandler(_TerminalHandler(terminal_level))
    if file is not None:
        written = _StudyFileHandler(file, terminal_level)
        written.setLevel(_level(verbosity))
        logger.addHandler(written)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    for handler in logger.handlers:
        handler.setFormatter(logging.Formatter(_FORMAT))
    logger.setLevel(min(_level(verbosity), terminal_level))
    logger.propagate = False
    return logger


def _level(verbosity: int) -> int:
    return _LEVELS[max(0, min(verbosity, len(_LEVELS) - 1))]
