"""Samples for validation on the disk: each is written once, beside the checkpoints that refer to it.

They lie in ``checkpoints/melissa/validation/``, one file for what has come between two checkpoints. A file
never changes once it has its name, and rank 0's manifest of every later checkpoint has its size and checksum.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from melissa._melissa import Buffer, CheckpointFile, Sample
from melissa.exceptions import CheckpointError, MelissaError
from melissa.server.checkpoint.folder import sync_folder
from melissa.server.checkpoint.study_state import StudyState
from melissa.server.simulation import Simulation, SimulationStatus

__all__ = ["RestoredValidation", "UnsavedSamples", "ValidationFiles", "load_validation"]

logger = logging.getLogger("melissa")

PIECE = 256 * 2**20
"""Bytes of samples in one file, about: they are copied in memory once more to be written."""


class UnsavedSamples(Protocol):
    """Where samples come from that are in no file yet."""

    def take_unsaved(self) -> list[Sample]:
        """Return those that have come since the last call."""

    def put_back(self, samples: list[Sample]) -> None:
        """Have samples that could not be written come first the next time."""


class ValidationFiles:
    """Writes samples for validation into `folder` and knows the files of all that were written.

    `source` gives them, `like` is the study's buffer, whose samples have the same fields. `known` are the
    files of before a restart. All methods are called by one thread at a time, that of the checkpoint.
    """

    def __init__(
        self, folder: Path, source: UnsavedSamples, like: Buffer, known: dict[str, tuple[int, int]]
    ) -> None:
        self._folder = folder
        self._source = source
        self._like = like
        self._known = dict(known)

    def save(self) -> dict[str, tuple[int, int]]:
        """Write what has come since the last call; return all files: name -> (bytes, CRC-32C).

        `CheckpointError` and `OSError` when that fails: it is tried again the next time.
        """
        samples = self._source.take_unsaved()
        try:
            for piece in list(_pieces(samples)):
                name = self._next_name()
                self._known[name] = self._write(name, piece)
                del samples[: len(piece)]
        finally:
            self._source.put_back(samples)
        return dict(self._known)

    def _next_name(self) -> str:
        names = (re.fullmatch(r"(\d{8,})\.safetensors", path.name) for path in self._folder.glob("*"))
        return f"{max((int(name[1]) for name in names if name), default=0) + 1:08d}.safetensors"

    def _write(self, name: str, samples: Sequence[Sample]) -> tuple[int, int]:
        """Write one file, down to the disk, in the form of a checkpoint that has drawn batches alone."""
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = self._folder / f"{name}.new"
        try:
            unfinished.unlink(missing_ok=True)
            carrier = Buffer("FIFO", 1)
            carrier.bind(self._like.fields, self._like.nb_parameters)
            written = carrier.cut(None, None, [samples]).write(unfinished).wait()
        except MelissaError as error:
            raise CheckpointError(
                f"{len(samples)} samples for validation were not written: {error}"
            ) from error
        assert written is not None
        os.rename(unfinished, self._folder / name)
        sync_folder(self._folder)
        return written["bytes"], written["crc32c"]


def _pieces(samples: list[Sample]) -> Iterator[list[Sample]]:
    if not samples:
        return
    size = sum(values.nbytes for values in samples[0].fields)
    at_once = max(1, PIECE // max(1, size))
    for begin in range(0, len(samples), at_once):
        yield samples[begin : begin + at_once]


@dataclass(frozen=True)
class RestoredValidation:
    """What a restarted server goes on with: samples of simulations that do not run again, in their order."""

    simulations: list[Simulation] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    files: dict[str, tuple[int, int]] = field(default_factory=dict)


def load_validation(folder: Path, study: StudyState) -> RestoredValidation:
    """Load the samples for validation of the checkpoint whose state is `study`.

    A simulation that had finished runs again if a time step of it is missing: files that are damaged, or
    not there, are named in the log.
    """
    files: dict[str, tuple[int, int]] = {}
    samples: dict[tuple[int, int, int], Sample] = {}
    for name, known in study.validation_files.items():
        try:
            # A simulation that was not complete has sent its time steps again after an earlier restart.
            for sample in CheckpointFile(folder / name, known).pending_samples():
                samples.setdefault((sample.simulation_id, sample.draw, sample.time_step), sample)
        except CheckpointError as error:
            logger.warning(f"samples for validation are lost, and their simulations run again: {error}")
        else:
            files[name] = known
    steps = Counter((simulation, draw) for simulation, draw, _ in samples)
    finished = {
        record["id"]
        for record in study.validation
        if record["status"] == SimulationStatus.FINISHED.value
        and steps[record["id"], record["draw"]] == record["steps_complete"]
    }
    simulations = study.restored_validation(finished)
    kept = {(simulation.id, simulation.draw) for simulation in simulations if simulation.is_final}
    return RestoredValidation(
        simulations, [sample for key, sample in samples.items() if key[:2] in kept], files
    )
