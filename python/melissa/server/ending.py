"""How a study comes to an end before its data do: something failed, or somebody asked it to stop."""

from __future__ import annotations

import threading

__all__ = ["StudyEnding", "StudyInterrupted"]


class StudyInterrupted(BaseException):
    """The study was asked to stop while user code ran that has no end of its own to wait for.

    No `Exception`, like `KeyboardInterrupt`: a user's ``except Exception`` is not to catch it. `status` is
    the exit status to end with.
    """

    def __init__(self, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.status = status


class StudyEnding:
    """What the threads of a server rank tell each other about an early end.

    The first failure and the first stop count. The training thread looks at it between two batches and in
    every wait.
    """

    def __init__(self) -> None:
        self.is_looked_at = False
        """Whether the training thread has come to where it looks at this object."""
        self.checkpoint_wanted = False
        """Whether somebody asked for a checkpoint: the ranks agree on the batch after which it is written."""
        self.has_own_loop = False
        """Whether a loop of the study's own trains, which writes a checkpoint when it says so itself."""
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._stop_reason: str | None = None
        self._stop_status = 0

    def fail(self, error: BaseException) -> None:
        """End the study with `error`, which `check` raises in the training thread."""
        with self._lock:
            if self._error is None:
                self._error = error

    def stop(self, reason: str, status: int = 0) -> bool:
        """End the study early, in order, with the exit status `status`; False if asked for before."""
        with self._lock:
            if self._stop_reason is not None:
                return False
            self._stop_reason, self._stop_status = reason, status
            return True

    @property
    def is_interrupted(self) -> bool:
        """Whether the study is to stop because somebody said so, and may go on another day."""
        return self._stop_reason is not None and self._stop_status != 0

    def holds_reception(self, saves_when_stopped: bool) -> bool:
        """Say whether reception has to wait with its end: training has not saved yet what it would lose.

        A training step takes any time, and so does a checkpoint: the launcher, or the scheduler, has a limit.
        """
        return saves_when_stopped and self.is_interrupted

    @property
    def error(self) -> BaseException | None:
        """What failed."""
        return self._error

    @property
    def stop_reason(self) -> str | None:
        """Why the study is to stop; None while it is not."""
        return self._stop_reason

    @property
    def stop_status(self) -> int:
        """Exit status of a server that was stopped."""
        return self._stop_status

    def check(self) -> bool:
        """Raise what failed; otherwise say whether the study is to stop."""
        if self._error is not None:
            raise self._error
        return self._stop_reason is not None
