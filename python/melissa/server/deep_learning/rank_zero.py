"""Calls that only rank 0 of the server is to make."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from melissa.server.communicator import process_rank

__all__ = ["rank_zero_only"]

F = TypeVar("F", bound=Callable[..., Any])


def rank_zero_only(function: F) -> F:
    """Function that can be used as a decorator to enable a function/method being called only on rank 0.

    Inspired by pytorch_lightning. On other ranks the call returns None. A method's rank is that of its
    object; a function's that of the server process.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        rank = getattr(args[0], "rank", None) if args else None
        if not isinstance(rank, int):
            rank = process_rank()
        return function(*args, **kwargs) if rank == 0 else None

    return cast(F, wrapper)
