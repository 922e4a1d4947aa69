"""The log of a process of the study: logger ``melissa``, to a file and to the terminal.

Lines start ``YYYY-MM-DD HH:MM:SS,mmm``; tools parse them.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

__all__ = ["LOGGER_NAME", "configure_logger"]

LOGGER_NAME = "melissa"

# No square brackets: tools find the parameters in "created client" lines by them.
_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)


class _TerminalHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever `sys.stderr` is at the time: a live view redirects it, so that lines appear above it."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        if self.stream is not None:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Do nothing: with stderr gone, there is no place left to say so, and a log must not end a study."""


class _StudyFileHandler(logging.Handler):
    """Appends to a file, unbuffered; once that fails (a full disk), says so on stderr and goes on there.

    `fallback` takes the lines from then on; None when another handler shows them on the terminal anyway.
    """

    def __init__(self, path: Path, fallback: logging.Handler | None) -> None:
        super().__init__()
        self.path = path
        self._fallback = fallback
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            self._give_up(error)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
        except Exception:
            self.handleError(record)
            return
        if self._descriptor is not None:
            data = line.encode(errors="backslashreplace")
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
                return
            except OSError as error:
                self._give_up(error)
        if self._fallback is not None:
            self._fallback.handle(record)

    def _give_up(self, error: OSError) -> None:
        if sys.stderr is not None:
            try:
                print(
                    f"cannot write the log {self.path}: {error.strerror}; free space there or choose another "
                    "output_dir for the next study; logging goes on on stderr",
                    file=sys.stderr,
                    flush=True,
                )
            except OSError:
                pass  # stderr is gone, too: no place is left to say it
        self._close_file()

    def _close_file(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            try:
                os.close(descriptor)
            except OSError:
                pass  # some file systems report a full disk here; what could be written is written

    def close(self) -> None:
        self._close_file()
        super().close()


def configure_logger(file: Path | None, verbosity: int, terminal: bool) -> logging.Logger:
    """Send the log of this process to `file` (appended to; None: to no file), and to stderr when `terminal`.

    `verbosity` runs from 0 (errors) over 1 (warnings) and 2 (progress) to 3 (everything). An earlier configuration is
    replaced. A file that cannot be written never raises: stderr is told once and takes the lines from then on.
    """
    logger = logging.getLogger(LOGGER_NAME)
    level = _LEVELS[max(0, min(verbosity, len(_LEVELS) - 1))]
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
    formatter = logging.Formatter(_FORMAT)
    shown = _TerminalHandler()
    shown.setFormatter(formatter)
    if terminal:
        logger.addHandler(shown)
    if file is not None:
        written = _StudyFileHandler(file, None if terminal else shown)
        written.setFormatter(formatter)
        logger.addHandler(written)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    logger.setLevel(level)
    logger.propagate = False
    return logger
