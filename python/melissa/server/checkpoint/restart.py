"""How a restarted server finds the newest checkpoint that every rank can use, and loads it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from melissa._melissa import Buffer, CheckpointFile
from melissa.exceptions import CheckpointError, UnsupportedConfiguration
from melissa.server.checkpoint.folder import BUFFER_FILE, CheckpointFolder
from melissa.server.checkpoint.manifest import Manifest
from melissa.server.checkpoint.study_state import StudyState
from melissa.server.checkpoint.validation_files import RestoredValidation
from melissa.server.communicator import Communicator
from melissa.server.simulation import Simulation

__all__ = ["RestoredCheckpoint", "load_newest"]

logger = logging.getLogger("melissa")

T = TypeVar("T")


@dataclass(frozen=True)
class RestoredCheckpoint:
    """What a rank goes on with.

    `simulations` are the same on every rank: final where all of a simulation is in the checkpoints of all
    ranks, planned where it has to run again.
    """

    manifest: Manifest
    file: CheckpointFile
    buffer: Buffer
    study: StudyState
    simulations: list[Simulation]
    validation: RestoredValidation = field(default_factory=RestoredValidation)
    """The simulations on every rank, all else on rank 0."""

    @property
    def batch(self) -> int:
        """The number of batches trained."""
        return self.manifest.batch

    def for_receiver(self) -> list[tuple[int, int, int, str]]:
        """Return (id, attempt, draw, status) of each simulation, as a `Receiver` takes them."""
        everything = (*self.simulations, *self.validation.simulations)
        return [(s.id, s.attempt, s.draw, s.status.value) for s in everything]


def load_newest(
    comm: Communicator,
    folder: CheckpointFolder,
    like: Buffer,
    steps_expected: Callable[[int], int | None],
    nb_simulations: int,
) -> RestoredCheckpoint | None:
    """Load the newest checkpoint that is whole on every rank; None when there is none such.

    Every rank calls it. Damaged ones are named in the log, and an older one is used. `steps_expected` says
    how many time steps of a simulation come to this rank, None where that is not known. Simulations from
    `nb_simulations` on are for validation.

    `UnsupportedConfiguration` when the newest one is of another configuration of the buffer or another
    number of ranks: no older one would fit either.
    """
    mine = {batch for batch in folder.batches() if folder.of_rank(batch, comm.rank).is_dir()}
    common = set.intersection(*comm.allgather(mine))
    for batch in sorted(common, reverse=True):
        loaded = _on_all(comm, batch, partial(_load, comm, folder, batch, like))
        if loaded is None:
            continue
        manifest, file, buffer = loaded
        study = StudyState.from_dict(comm.bcast(manifest.study) or {})
        finished = _finished(comm, study, file, steps_expected)
        simulations = study.restored_simulations(finished)
        # This rank may have had everything, and its buffer be closed, where another one lacks some of it.
        is_over = all(simulation.is_final for simulation in simulations if simulation.id < nb_simulations)
        if not is_over and _on_all(comm, batch, partial(_reopened, buffer)) is None:
            continue
        return RestoredCheckpoint(manifest, file, buffer, study, simulations)
    return None


def _reopened(buffer: Buffer) -> Buffer:
    buffer.reopen()
    return buffer


def _on_all(comm: Communicator, batch: int, act: Callable[[], T]) -> T | None:
    """Use a checkpoint on every rank; None, and said in the log, where one rank cannot."""
    result: T | None = None
    problem = ""
    try:
        result = act()
    except CheckpointError as error:
        problem = str(error)
    problems = [f"rank {rank}: {text}" for rank, text in enumerate(comm.allgather(problem)) if text]
    for text in problems:
        logger.warning(f"the checkpoint after batch {batch} cannot be used: {text}")
    return None if problems else result


def _load(
    comm: Communicator, folder: CheckpointFolder, batch: int, like: Buffer
) -> tuple[Manifest, CheckpointFile, Buffer]:
    part = folder.of_rank(batch, comm.rank)
    manifest = Manifest.read(part)
    if manifest.nb_ranks != comm.size:
        raise UnsupportedConfiguration(
            f"checkpoint {part} is of a server of {manifest.nb_ranks} ranks, and this one has {comm.size}: "
            "restart with as many ranks as before"
        )
    manifest.check_files(part)
    # Its checksum was compared just now.
    file = CheckpointFile(part / BUFFER_FILE)
    return manifest, file, file.restore_buffer(like)


def _finished(
    comm: Communicator, study: StudyState, file: CheckpointFile, steps_expected: Callable[[int], int | None]
) -> set[int]:
    """Return the simulations of which every rank has everything."""
    draws = {record["id"]: record["draw"] for record in study.simulations}
    here = set()
    for simulation, _, draw, is_finished, steps in file.simulations:
        if draw == draws.get(simulation) and (is_finished or steps == steps_expected(simulation)):
            here.add(simulation)
    return set.intersection(*comm.allgather(here))
