"""Telling of a failure: in the log, and to the launcher, which shows it on the user's terminal."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

from melissa.exceptions import MelissaError, RankLostError
from melissa.launcher.message import Failure
from melissa.server.link import LauncherLink
from melissa.utility.channel import ChannelClosed

__all__ = ["report_failure", "user_traceback"]

logger = logging.getLogger("melissa")

_PACKAGE = Path(__file__).resolve().parent.parent


def user_traceback(error: BaseException) -> str:
    """Return the traceback of `error` in which the user's own frames stand out: this package's are left out.

    Empty where it would say no more than the error's text.

    An error of this package's own that no user code is part of has none: its text says all. A foreign one,
    which would be a fault of this package, keeps all frames.
    """
    lines = _format(error, shown=set())
    return "" if lines == traceback.format_exception_only(error) and _says_all(error) else "".join(lines)


def _says_all(error: BaseException) -> bool:
    return isinstance(error, MelissaError) and not getattr(error, "__notes__", None)


def _format(error: BaseException, shown: set[int]) -> list[str]:
    shown.add(id(error))
    lines: list[str] = []
    before = error.__cause__ if error.__cause__ is not None else error.__context__
    if before is not None and id(before) not in shown and (error.__cause__ or not error.__suppress_context__):
        lines += _format(before, shown)
        by_intent = error.__cause__ is not None
        lines.append("\nThe direct cause of:\n\n" if by_intent else "\nWhile that was handled:\n\n")
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not _is_ours(frame)]
    if users or (frames and not isinstance(error, MelissaError | SyntaxError)):
        lines.append("Traceback (most recent call last):\n")
        lines += traceback.format_list(users or frames)
    lines += traceback.format_exception_only(error)
    return lines


def _is_ours(frame: traceback.FrameSummary) -> bool:
    name = frame.filename
    return name.startswith("<frozen ") or Path(name).is_relative_to(_PACKAGE)


def report_failure(error: BaseException, link: LauncherLink | None) -> None:
    """Log `error` with its traceback and tell the launcher; a second call for the same study does nothing.

    Never raises: a launcher that is gone cannot be told.
    """
    if link is not None and link.failure_told:
        return
    text = user_traceback(error)
    logger.error(f"the server fails: {type(error).__name__}: {error}\n{text}".rstrip())
    logger.debug("the complete traceback", exc_info=error)
    if link is None:
        return
    link.failure_told = True
    try:
        link.send(Failure(type(error).__name__, str(error), text, isinstance(error, RankLostError)))
    except ChannelClosed as closed:
        logger.warning(f"the launcher could not be told of the failure: {closed}")
