"""How a checkpoint comes about: the ranks agree, take the cut, and go on training while it is written."""

from __future__ import annotations

import enum
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from melissa._melissa import (
    Batch,
    Buffer,
    CheckpointFile,
    CheckpointWriting,
    Cut,
    Prefetcher,
    Receiver,
    Sample,
)
from melissa.exceptions import CheckpointError
from melissa.server.checkpoint.folder import BUFFER_FILE, CheckpointFolder
from melissa.server.checkpoint.manifest import Manifest, configuration_fingerprint
from melissa.server.checkpoint.study_state import StudyState
from melissa.server.communicator import Communicator

__all__ = ["CheckpointWriter", "DataPlane"]

logger = logging.getLogger("melissa")


@dataclass(frozen=True)
class DataPlane:
    """Where a rank's samples are at a batch boundary.

    `ahead` are batches that were drawn and not yet trained, before those that `prefetcher` holds.
    """

    buffer: Buffer
    receiver: Receiver | None
    prefetcher: Prefetcher | None = None
    ahead: Iterable[Batch | Iterable[Sample]] = ()

    def cut(self) -> Cut:
        """Take the cut."""
        return self.buffer.cut(self.receiver, self.prefetcher, self.ahead)


class _Obstacle(enum.IntFlag):
    """Why a rank cannot write a checkpoint now; all ranks get the bitwise or."""

    BUSY = 1
    EMPTY = 2
    APART = 4


class CheckpointWriter:
    """Writes the checkpoints of one server rank, one at a time.

    Parameters
    ----------
    comm
        The ranks: each calls `write` at the same batches.
    folder
        Of the study's checkpoints, shared by the ranks.
    config_dict, study_epoch
        What the manifest says of the study.
    study
        Gives rank 0's view of the simulations; None on the other ranks. Called in the writing thread.
    flush_logs
        Has the rank's logs of the batches so far written, so that none is missing after a restart. Called
        in the writing thread.
    save_validation
        Writes the samples for validation that are in no file yet, and returns all files. Called in the
        writing thread of rank 0.
    """

    def __init__(
        self,
        comm: Communicator,
        folder: CheckpointFolder,
        *,
        config_dict: dict[str, Any],
        study_epoch: int,
        study: Callable[[], StudyState] | None,
        flush_logs: Callable[[], None] = lambda: None,
        save_validation: Callable[[], dict[str, tuple[int, int]]] = dict,
    ) -> None:
        self._comm = comm
        self._folder = folder
        self._config_dict = config_dict
        self._study_epoch = study_epoch
        self._study = study
        self._flush_logs = flush_logs
        self._save_validation = save_validation
        self._thread: threading.Thread | None = None
        self._skip_told: tuple[int | None, _Obstacle] | None = None
        self.last_batch: int | None = None
        """The batch after which the last checkpoint was begun, on every rank."""

    @property
    def is_busy(self) -> bool:
        """Whether this rank's part of a checkpoint is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def write(
        self,
        batch: int,
        data: DataPlane,
        progress: dict[str, Any],
        save_model: Callable[[Path], None],
    ) -> bool:
        """Write a checkpoint after `batch`, on every rank; False, and said in the log, when it is skipped.

        It returns when the cut is taken and the model saved; the rest is written by threads. A disk that
        fails costs the checkpoint, not the study.
        """
        mine = _Obstacle(0)
        if self.is_busy:
            mine |= _Obstacle.BUSY
        if not data.buffer.bound:
            mine |= _Obstacle.EMPTY
        # All that a rank decides by follows from what all ranks know: else some would wait for the others.
        answers = self._comm.allgather((batch, int(mine)))
        batches = [other for other, _ in answers]
        obstacles = _Obstacle(0)
        for other, obstacle in answers:
            obstacles |= _Obstacle(obstacle)
            if other != batch:
                obstacles |= _Obstacle.APART
        if not obstacles & _Obstacle.APART and self.last_batch == batch:
            return False
        if obstacles:
            self._tell_skip(batch, batches, obstacles)
            return False
        # Also where it fails on this rank: asked for the same batch again, all ranks must answer alike.
        self.last_batch = batch
        begin = time.perf_counter()
        writing: CheckpointWriting | None = None
        try:
            unfinished = self._folder.begin(batch, self._comm.rank)
            cut = data.cut()
            paused = time.perf_counter() - begin
            population, pending = cut.population, cut.pending
            writing = cut.write(unfinished / BUFFER_FILE)
            save_model(unfinished)
        except (CheckpointError, OSError) as error:
            self._tell_failure(batch, error)
            self._start(self._give_up, batch, writing)
            return False
        logger.debug(
            f"checkpoint after batch {batch}: {population} samples and {pending} of drawn batches are being "
            f"written; training paused {paused:.3f} s for the cut, {time.perf_counter() - begin:.3f} s with "
            "the model"
        )
        manifest = {
            "batch": batch,
            "rank": self._comm.rank,
            "nb_ranks": self._comm.size,
            "study_epoch": self._study_epoch,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "configuration": configuration_fingerprint(self._config_dict),
            "progress": progress,
        }
        self._start(self._finish, batch, unfinished, writing, manifest)
        return True

    def _tell_skip(self, batch: int, batches: list[int], obstacles: _Obstacle) -> None:
        level = logging.INFO
        if _Obstacle.APART in obstacles:
            level = logging.WARNING
            numbers = ", ".join(f"rank {rank} after {other}" for rank, other in enumerate(batches))
            why = (
                f"the server's ranks are not after the same batch ({numbers}); all of them have to call "
                "checkpoint_state after the same number of batches"
            )
        elif _Obstacle.BUSY in obstacles:
            which = f"that of batch {self.last_batch}" if self.is_busy else "another rank's"
            why = f"{which} is still being written"
        else:
            why = "no sample has come yet"
        # Said once for each reason: batches may be short.
        is_news = self._skip_told != (self.last_batch, obstacles)
        self._skip_told = self.last_batch, obstacles
        logger.log(
            level if is_news else logging.DEBUG, f"the checkpoint after batch {batch} is skipped: {why}"
        )

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        """Have a thread do the rest of a checkpoint: until it has ended this rank is busy."""
        self._thread = threading.Thread(target=work, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until what is being written is written."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _finish(
        self, batch: int, unfinished: Path, writing: CheckpointWriting, manifest: dict[str, Any]
    ) -> None:
        try:
            self._flush_logs()
            written = writing.wait()
            assert written is not None
            files = {BUFFER_FILE: (written["bytes"], written["crc32c"])}
            for path in sorted(unfinished.rglob("*")):
                if path.is_file() and path.name != BUFFER_FILE:
                    _sync_file(path)
                    files[str(path.relative_to(unfinished))] = CheckpointFile.measure(path)
            # After the cut: what the simulations did in between is done again where it has to be.
            study: dict[str, Any] | None = None
            if self._study is not None:
                state = self._study()
                # After that, too: of a simulation that has finished all samples are there.
                state.validation_files = self._save_validation()
                study = state.to_dict()
            Manifest(**manifest, files=files, study=study).write(unfinished)
            self._folder.commit(batch, self._comm.rank)
        except (CheckpointError, OSError) as error:
            self._tell_failure(batch, error)
            self._give_up(batch, writing)
            return
        self._prune(batch)
        aside = written["copied_aside"]
        logger.info(
            f"checkpoint after batch {batch} is written: {written['bytes'] / 2**20:.1f} MiB in "
            f"{written['seconds']:.2f} s"
            + (f"; {aside} samples were copied so that reception did not wait for the disk" if aside else "")
        )

    def _tell_failure(self, batch: int, error: Exception) -> None:
        logger.error(
            f"the checkpoint after batch {batch} could not be written: {error}. The study goes on; a server "
            "that dies now goes on from the one before"
        )

    def _give_up(self, batch: int, writing: CheckpointWriting | None) -> None:
        """Remove this rank's part, once nobody writes to it any more."""
        try:
            if writing is not None:
                writing.wait()
        except CheckpointError as error:
            logger.debug(f"samples of the checkpoint after batch {batch} were not written either: {error}")
        try:
            self._folder.abandon(batch, self._comm.rank)
        except OSError as error:
            logger.error(f"what was written of the checkpoint after batch {batch} stays: {error}")
        self._prune(batch)

    def _prune(self, batch: int) -> None:
        """Remove what nobody needs after the checkpoint of `batch`; other ranks may still be writing that."""
        if self._comm.rank != 0:
            return
        try:
            self._folder.prune(self._comm.size, batch)
        except OSError as error:
            logger.error(f"checkpoints older than that of batch {batch} could not be removed: {error}")


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
