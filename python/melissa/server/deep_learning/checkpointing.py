"""Checkpoints of a server that trains: what is saved between two batches, and put back after a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from melissa._melissa import CheckpointFile, Prefetcher
from melissa.exceptions import CheckpointError, UnsupportedConfiguration
from melissa.server.checkpoint.folder import CheckpointFolder
from melissa.server.checkpoint.manifest import configuration_fingerprint
from melissa.server.checkpoint.restart import RestoredCheckpoint, load_newest
from melissa.server.checkpoint.study_state import StudyState, advance_sampler
from melissa.server.checkpoint.validation_files import (
    RestoredValidation,
    ValidationFiles,
    load_validation,
)
from melissa.server.checkpoint.writing import CheckpointWriter, DataPlane
from melissa.server.deep_learning.dataset import MelissaIterableDataset
from melissa.server.deep_learning.validation_batches import ValidationBatches
from melissa.server.distribution import steps_of_rank
from melissa.server.ending import StudyEnding
from melissa.server.environment import StudyEnvironment
from melissa.server.simulation import SimulationStatus

if TYPE_CHECKING:
    from melissa.server.deep_learning.base_dl_server import DeepMelissaServer
    from melissa.server.deep_learning.lanes import BatchSource, Delivery

__all__ = [
    "BatchesAhead",
    "begin_checkpoints",
    "outlive_the_disk",
    "restart",
    "wait_until_written",
    "write_last",
    "write_state",
]

logger = logging.getLogger("melissa")

FOLDER = Path("checkpoints") / "melissa"


class BatchesAhead:
    """What the training loop has drawn and not yet trained, for a cut between two batches.

    Batches of before a restart, `restored`, are delivered first by whatever draws first.
    """

    def __init__(self) -> None:
        self.source: BatchSource | None = None
        self.fetched: list[Delivery] = []
        """Batches that the loop has fetched, in order; one leaves when it is trained."""
        self.restored: CheckpointFile | None = None

    def trained(self, delivery: Delivery) -> None:
        """Take note that a batch is trained."""
        if self.fetched and self.fetched[0] is delivery:
            del self.fetched[0]

    def take_restored(self) -> CheckpointFile | None:
        """Return the checkpoint whose batches have to be delivered, once."""
        restored, self.restored = self.restored, None
        return restored


@contextmanager
def outlive_the_disk(batch_idx: int) -> Iterator[None]:
    """Have a disk that fails cost the file of the model, not the study: that is said in the log."""
    try:
        yield
    except (CheckpointError, OSError) as error:
        logger.error(f"the model was not saved after batch {batch_idx}: {error}. The study goes on")


def begin_checkpoints(server: DeepMelissaServer) -> CheckpointWriter:
    """Make what writes the rank's checkpoints."""
    control, folder, batches = server._control, CheckpointFolder(FOLDER), server.valid_dataloader
    save_validation: Callable[[], dict[str, tuple[int, int]]] = dict
    if isinstance(batches, ValidationBatches):
        known = {} if server._restored is None else server._restored.validation.files
        save_validation = ValidationFiles(folder.validation, batches, server.buffer.native, known).save
    return CheckpointWriter(
        server.comm,
        folder,
        config_dict=server.config_dict,
        study_epoch=StudyEnvironment.read().study_epoch,
        study=None if control is None else control.state,
        flush_logs=server.tb_logger.flush,
        save_validation=save_validation,
    )


def write_state(server: DeepMelissaServer) -> None:
    """Write a checkpoint of the study after the batches that were trained so far; every rank calls it."""
    if server._receiver is None or server._checkpoints is None:
        return
    ahead = server._ahead
    batches = [delivery.samples for delivery in ahead.fetched]
    prefetcher: Prefetcher | None = None
    if ahead.source is not None:
        prefetcher = ahead.source.prefetcher
        batches += [samples for samples in [ahead.source.drawn()] if samples]
    elif isinstance(dataset := server.dataset, MelissaIterableDataset):
        batches += [samples for samples in [dataset.at_checkpoint()] if samples]
    server._checkpoints.write(
        server._progress.batches_of_ranks,
        DataPlane(server.buffer.native, server._receiver, prefetcher, batches),
        server._progress.saved(),
        server._checkpoint_model,
    )


def write_last(server: DeepMelissaServer, write: Callable[[], None], *, is_interrupted: bool) -> None:
    """Have `write` write the last checkpoint of this start; every rank calls it.

    Reception may end when the cut is taken. Who ends a server that is interrupted waits until the checkpoint
    is on the disk: so does this, before code of the study's class takes its time.
    """
    checkpoints = server._checkpoints
    with server._progress.saving():
        if checkpoints is not None:
            wait_until_written(checkpoints, server._ending)
        write()
        server._progress.saves_when_stopped = False
        if checkpoints is not None and is_interrupted:
            wait_until_written(checkpoints, server._ending)


def wait_until_written(checkpoints: CheckpointWriter, ending: StudyEnding) -> None:
    """Wait until this rank's part is written; raises what fails meanwhile: a disk may hang for hours."""
    while checkpoints.is_busy:
        ending.check()
        checkpoints.wait(timeout=0.2)


def restart(server: DeepMelissaServer) -> RestoredCheckpoint | None:
    """Put back what the newest usable checkpoint has; None, and said in the log, where the study begins anew.

    Called when the buffer is made and nothing is received yet.
    """
    folder = CheckpointFolder(FOLDER)
    if StudyEnvironment.read().restart == 0:
        if server.rank == 0:
            if folder.forget_all():
                logger.info("checkpoints of an earlier study in this folder were removed")
            folder.forget_validation()
        server.comm.barrier()
        return None
    restored = load_newest(
        server.comm,
        folder,
        server.buffer.native,
        lambda simulation: _steps_expected(server, simulation),
        server.nb_simulations,
    )
    if restored is None:
        logger.info(
            "the server was restarted, and there is no checkpoint to go on from: the study begins anew"
        )
        if server.rank == 0:
            if (aside := folder.put_aside()) is not None:
                logger.warning(f"checkpoints that cannot be used were put aside: {aside.absolute()}")
            folder.forget_validation()
        server.comm.barrier()
        return None
    manifest = restored.manifest
    if manifest.configuration != configuration_fingerprint(server.config_dict):
        logger.warning(
            "the configuration (study_options or dl_config) is not the one that the checkpoint was written "
            "under: the study goes on with the new one"
        )
    if server.buffer.native.bound:
        raise UnsupportedConfiguration(
            "the study's class puts samples into its buffer before the server is online, so that a "
            "checkpoint cannot be restored into it: put them in on_train_start, where batch_offset is 0"
        )
    server.buffer.native = restored.buffer
    server._ahead.restored = restored.file
    server.batch_offset = manifest.batch
    server._progress.resume(manifest.progress, manifest.batch)
    server.tb_logger.go_on_after(manifest.batch)
    server._restore_model(folder.of_rank(manifest.batch, server.rank))
    for simulation, draw, parameters in restored.study.draws:
        server._registry.record(simulation, draw, parameters)
    if server.rank == 0:
        folder.forget_newer(manifest.batch)
        advance_sampler(server._draw, restored.study.draws)
        validation = _restore_validation(server, folder, restored.study)
        server.comm.bcast(validation.simulations)
    else:
        validation = RestoredValidation(server.comm.bcast(None))
        # On rank 0 the control thread's part tells of them.
        for known in restored.simulations:
            if known.status is SimulationStatus.FINISHED:
                server._simulation_finished(known)
    restored = replace(restored, validation=validation)
    server.comm.barrier()
    again = sum(not simulation.is_final for simulation in restored.simulations)
    logger.info(
        f"the server goes on after batch {manifest.batch}, from the checkpoint of {manifest.written}: "
        f"{restored.file.population} samples are in the buffer, {sum(restored.file.pending)} in batches that "
        f"wait to be trained; of {len(restored.simulations)} simulations {again} run again"
    )
    return restored


def _restore_validation(
    server: DeepMelissaServer, folder: CheckpointFolder, study: StudyState
) -> RestoredValidation:
    """Put back the simulations for validation, and what they have sent."""
    restored = RestoredValidation()
    first = server.nb_simulations
    planned = range(first, first + server._nb_validation)
    # A class with batches of its own has not looked at what they send.
    if server.valid_dataloader is None and server._validation_draws is not None and study.validation:
        if all(record["id"] in planned for record in study.validation):
            restored = load_validation(folder.validation, study)
            for simulation, draw, parameters in study.validation_draws:
                server._registry.record(simulation, draw, parameters)
            advance_sampler(server._validation_draws, study.validation_draws)
        else:
            logger.warning(
                "there are other simulations for validation than in the checkpoint (parameter_sweep_size or "
                "validation_sweep_size has changed): all of them run again"
            )
        again = sum(not simulation.is_final for simulation in restored.simulations)
        logger.info(
            f"{len(restored.samples)} samples for validation are here; of {len(planned)} simulations for it "
            f"{again + len(planned) - len(restored.simulations)} have to run"
        )
    folder.forget_validation(but=restored.files)
    return restored


def _steps_expected(server: DeepMelissaServer, simulation: int) -> int | None:
    if not server.nb_time_steps:
        return None
    # Time steps of one simulation are those of a study of this one, seen from as many ranks further.
    nb_ranks, distribution = server.comm_size, server.dl_config["distribution"]
    return steps_of_rank(
        (server.rank - simulation) % nb_ranks,
        nb_ranks=nb_ranks,
        nb_simulations=1,
        nb_time_steps=server.nb_time_steps,
        distribution=distribution,
    )
