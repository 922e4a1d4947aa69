"""Clients that the scheduler could not start: no solver has crashed, and to ask again at once is no use."""

from __future__ import annotations

import time

from melissa.exceptions import FatalError

__all__ = ["FailedStarts"]


class FailedStarts:
    """Counts clients that could not be started since one was; paces the next ones, and gives up in the end.

    A machine that is full starts one again when others have ended. So only where none runs do `LIMIT` in a
    row show that none can be started.
    """

    LIMIT = 3
    FIRST_PAUSE = 2.0
    """Seconds without a further client after the first that could not be started; each round doubles them."""
    LONGEST_PAUSE = 60.0

    def __init__(self) -> None:
        """Begin with none."""
        self.last = ""
        """What is known of the last one, ready to be shown; empty when all could be started."""
        self._in_a_row = 0
        self._pause = 0.0
        self._again_at = 0.0

    def started(self) -> None:
        """Take note of a client that was started: the next ones may be asked for at once."""
        self._in_a_row = 0
        self._pause = self._again_at = 0.0

    def failed(self, text: str, *, others_run: bool) -> None:
        """Take note of one that could not be started; `FatalError` where that shows that none can be.

        `text` says which one, and what the scheduler said; `others_run` whether some client runs now.
        """
        self.last = text
        self._in_a_row += 1
        if self._in_a_row >= self.LIMIT and not others_run:
            raise FatalError(
                f"{self._in_a_row} clients in a row could not be started, and none runs, so the study is "
                f"stopped. The last one: {text}\n"
                "  What the scheduler is given stands in launcher_config: scheduler_arg, "
                "scheduler_arg_client, scheduler_client_command."
            )
        now = time.monotonic()
        if now >= self._again_at:  # one round: what was asked for together fails together
            self._pause = min(2 * self._pause or self.FIRST_PAUSE, self.LONGEST_PAUSE)
            self._again_at = now + self._pause

    @property
    def is_pausing(self) -> bool:
        """Whether it is too early for a further client."""
        return time.monotonic() < self._again_at
