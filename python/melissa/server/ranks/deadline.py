"""The end of a process whose main thread does not come to its own."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

__all__ = ["LastResort", "leave_at_once"]

logger = logging.getLogger("melissa")


def leave_at_once(status: int) -> None:
    """End this process without MPI's farewell, which waits for ranks that may never come to it."""
    logging.shutdown()
    os._exit(status)


class LastResort:
    """Ends the process some seconds after a failure, if nothing else has by then.

    The main thread may be inside a call that waits for a rank that has failed, a gradient's all-reduce say,
    and never come to look. `give_up` is called first: whatever can still be said is said there.
    """

    GRACE = 3.0
    """Seconds that the main thread has to come to its end by itself."""
    GIVE_UP_GRACE = 3.0
    """Seconds for `give_up`."""

    def __init__(self) -> None:
        self.give_up: Callable[[], object] = lambda: None
        self.status = 1
        """The exit status that the process ends with."""
        self._timer: threading.Timer | None = None

    def set(self) -> None:
        """Begin to count, once."""
        if self._timer is None:
            self._timer = threading.Timer(self.GRACE, self._act)
            self._timer.daemon = True
            self._timer.start()

    def cancel(self) -> None:
        """The main thread has come to its end."""
        if self._timer is not None:
            self._timer.cancel()

    def _act(self) -> None:
        logger.warning(
            f"the main thread has not noticed the failure for {self.GRACE:g} s: it is in a call that "
            "does not look; the process ends now"
        )
        giving_up = threading.Thread(target=self.give_up, name="give-up", daemon=True)
        giving_up.start()
        giving_up.join(self.GIVE_UP_GRACE)
        leave_at_once(self.status)
