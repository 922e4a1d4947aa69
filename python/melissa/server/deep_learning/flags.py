"""What the server's ranks agree on for each batch: whether all have one, and what somebody has asked for."""

from __future__ import annotations

import enum
import time

from melissa.server.communicator import Communicator, FlagsRequest
from melissa.server.deep_learning.training_share import TrainingShare
from melissa.server.ending import StudyEnding

__all__ = ["BatchFlags", "TrainingFlag"]


class TrainingFlag(enum.IntFlag):
    """A rank's bits of a batch; what all ranks get is the bitwise or."""

    NO_BATCH = 1
    """Some rank has none: training ends on all."""
    CHECKPOINT = 2
    """Somebody wants a checkpoint after the batch before this one."""


# Plain numbers: operations of an enumeration take as long as everything else that is done per batch.
_NO_BATCH, _CHECKPOINT = int(TrainingFlag.NO_BATCH), int(TrainingFlag.CHECKPOINT)


class BatchFlags:
    """One agreement of all ranks per batch, also on how much of training is done.

    A rank may `post` its share when it has fetched a batch, and complete it by `agree` after the training
    step of the batch before: then what the ranks say to each other passes during that step. It may just as
    well `agree` alone. Every rank agrees as often as the others do, until a batch is missing somewhere;
    afterwards nobody asks any more.
    """

    def __init__(self, comm: Communicator, ending: StudyEnding, share: TrainingShare | None = None) -> None:
        self._comm = comm
        self._is_alone = comm.size == 1
        self._ending = ending
        self._share = share or TrainingShare()
        self._posted: FlagsRequest | None = None
        self._agreed = 0
        self.wait_seconds = 0.0
        """Seconds that this rank has waited for the others to agree: for their data, and their steps."""

    @property
    def has_ended(self) -> bool:
        """Whether the ranks have agreed that one of them has no batch."""
        return bool(self._agreed & _NO_BATCH)

    @property
    def checkpoint_wanted(self) -> bool:
        """Whether some rank wanted a checkpoint, as of the last agreement."""
        return bool(self._agreed & _CHECKPOINT)

    def post(self, has_batch: bool) -> None:
        """Give this rank's share for the batch that it has fetched, or could not fetch."""
        mine = 0 if has_batch else _NO_BATCH
        if self._ending.checkpoint_wanted:
            mine |= _CHECKPOINT
        if self._is_alone:
            # It looks at its share when somebody asks for it.
            self._agreed = mine
            return
        # The note is rank 0's.
        self._posted = self._comm.flags(mine, self._share.here() if self._comm.rank == 0 else 0.0)

    def agree(self, has_batch: bool) -> bool:
        """Complete what was posted, or give `has_batch` as this rank's share; say whether all have one."""
        if self._is_alone:
            self.post(has_batch)
            return not self._agreed & _NO_BATCH
        if self.has_ended:
            return False
        if self._posted is None:
            self.post(has_batch)
            assert self._posted is not None
        start = time.perf_counter()
        self._agreed, share = self._posted.result()
        self.wait_seconds += time.perf_counter() - start
        self._posted = None
        self._share.raise_to(share)
        return not self.has_ended

    def leave(self) -> None:
        """Training has ended on this rank: others that still ask are told so."""
        if not self.has_ended:
            self.agree(has_batch=False)
