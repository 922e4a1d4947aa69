"""Telling of a failure: in the log, and to the launcher, which shows it on the user's terminal."""

from __future__ import annotations

import logging
import time
import traceback
from pathlib import Path
from typing import Protocol

from melissa.exceptions import FatalError, MelissaError, RankLostError
from melissa.launcher.message import Failure
from melissa.server.link import Link
from melissa.server.ranks.message import RankFailure
from melissa.utility.channel import ChannelClosed

__all__ = ["OtherRankFailed", "Team", "failure_of", "report_failure", "tell_launcher", "user_traceback"]

logger = logging.getLogger("melissa")

_IS_REPORTED = "_melissa_is_reported"
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


class OtherRankFailed(FatalError):
    """Another rank of the server has failed; it has told of it itself."""

    def __init__(self, rank: int, text: str) -> None:
        super().__init__(rank, text)
        self.rank = rank

    def __str__(self) -> str:
        return f"server rank {self.rank} has failed: {self.args[1]}"


class Team(Protocol):
    """The other ranks of a server, as far as failures go."""

    def fail(self, error: BaseException) -> None:
        """Have rank 0 tell the launcher and all ranks that this rank has failed."""


def failure_of(error: BaseException, rank: int) -> RankFailure:
    """Return the message that tells other ranks of `error`, which has just been raised."""
    return RankFailure(rank, type(error).__name__, str(error), user_traceback(error), time.time())


def report_failure(error: BaseException, link: Link | None, ranks: Team | None = None) -> None:
    """Log `error` with its traceback, and tell the launcher; of several ranks, rank 0 does.

    A second call for the same study or error does nothing, nor does one for another rank's failure. Never
    raises: a launcher that is gone cannot be told.
    """
    if (link is not None and link.failure_told) or getattr(error, _IS_REPORTED, False):
        return
    setattr(error, _IS_REPORTED, True)
    if isinstance(error, OtherRankFailed):
        logger.info(f"this rank ends: {error}")
        return
    text = user_traceback(error)
    logger.error(f"the server fails: {type(error).__name__}: {error}\n{text}".rstrip())
    logger.debug("the complete traceback", exc_info=error)
    if ranks is not None:
        ranks.fail(error)
    elif link is not None:
        tell_launcher(link, Failure(type(error).__name__, str(error), text, isinstance(error, RankLostError)))


def tell_launcher(link: Link, failure: Failure) -> None:
    """Tell the launcher of a failure, the first one only; never raises."""
    if link.failure_told:
        return
    link.failure_told = True
    try:
        link.send(failure)
    except ChannelClosed as closed:
        logger.warning(f"the launcher could not be told of the failure: {closed}")
