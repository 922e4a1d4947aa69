"""What a training server sets up so that time steps come: the receiver, the dataset, the ensemble."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from melissa._melissa import Receiver
from melissa.launcher.message import Register
from melissa.server.control import Listeners
from melissa.server.deep_learning.accounting import TrainedAccounting
from melissa.server.deep_learning.batch_source import make_batch_maker
from melissa.server.deep_learning.checkpointing import begin_checkpoints
from melissa.server.deep_learning.dataset import MelissaIterableDataset
from melissa.server.deep_learning.hooks import sample_checks
from melissa.server.deep_learning.lanes import SampleChecks
from melissa.server.deep_learning.reservoir import (
    BaseQueue,
    BufferType,
    default_assembly_slots,
    make_buffer,
)
from melissa.server.deep_learning.validation_batches import ValidationBatches
from melissa.server.ensemble import CloseLedgers, Ensemble
from melissa.server.environment import StudyEnvironment
from melissa.server.figures import RankFigures
from melissa.server.ranks.agent import LocalReception, RankAgent
from melissa.server.ranks.balance import RankBalance
from melissa.server.ranks.hub import RankHub
from melissa.server.ranks.receivers import RankedReceivers
from melissa.server.study_receiver import RankReceiver, StudyReceiver
from melissa.utility.addresses import bind_address

if TYPE_CHECKING:
    from melissa.server.deep_learning.base_dl_server import DeepMelissaServer

__all__ = ["begin_reception", "make_study_buffer"]

logger = logging.getLogger("melissa")


def make_study_buffer(server: DeepMelissaServer, kind: BufferType) -> BaseQueue:
    """Make the buffer that the configuration asks for."""
    return make_buffer(
        server.buffer_size,
        kind,
        server.per_server_watermark,
        server.pseudo_epochs,
        server.batch_size,
        seed=server.study_options["seed"] + server.rank,
        assembly_slots=default_assembly_slots(server.buffer_size, server._job_limit - 1),
        # Several ranks fetch a batch ahead: views of two are out at once.
        lent_slots=2 * server.batch_size + 1 if server.comm_size > 1 else None,
    )


def begin_reception(server: DeepMelissaServer, reception_over: Callable[[], None]) -> None:
    """Let data flow from the sockets to the buffer, and on rank 0 ask for clients.

    `reception_over` is called, in the thread that follows the simulations, when nothing more can come.
    """
    receiver = server._receiver = _open_receiver(server)
    if server._nb_validation and server.rank == 0 and server._valid_dataloader is None:
        server._valid_dataloader = _make_validation_batches(server, receiver)
    server._is_receiving = True
    server._share.follow(server.buffer, receiver, server._progress)
    server._accounting = TrainedAccounting(receiver, server._progress)
    server._checks = _make_checks(server)
    _join_dataset(server, server.dataset, server._accounting, server._checks)
    listeners = Listeners(
        simulation_finished=server._simulation_finished,
        reception_over=reception_over,
        tick=server._on_control_tick,
    )
    addresses = server.comm.allgather(receiver.address)
    receiver.set_servers(addresses)
    # Every rank obeys before rank 0 can ask for a client.
    _obey_rank_zero(server, receiver, listeners)
    server.comm.barrier()
    if server.rank == 0:
        server._needed_link().send(Register(addresses, os.getpid(), server.comm_size))
        server._ensemble = _start_ensemble(server, receiver, listeners)
    server._checkpoints = begin_checkpoints(server)


def _open_receiver(server: DeepMelissaServer) -> Receiver:
    """Listen for clients: from now on the extension's thread fills the server's buffer."""
    environment = StudyEnvironment.read()
    data_type = server.dl_config["data_type"]
    receiver = Receiver(
        server.buffer.native,
        key=environment.key,
        study_epoch=environment.study_epoch,
        field_names=server.study_options["field_names"],
        nb_parameters=server.nb_parameters,
        nb_time_steps=server.nb_time_steps or None,
        planned=server.nb_simulations,
        data_type=data_type,
        host=bind_address(environment.own_host),
        advertise=environment.own_host,
        rank=server.rank,
        nb_ranks=server.comm_size,
        distribution=server.dl_config["distribution"],
        simulation_timeout=server.study_options["simulation_timeout"],
        restored=None if server._restored is None else server._restored.file,
        simulations=[] if server._restored is None else server._restored.for_receiver(),
        validation=server._nb_validation,
    )
    logger.info(
        f"{server.nb_simulations} simulations are planned; the {server.buffer.kind.name} buffer holds "
        f"{server.buffer.maxsize} samples, its watermark is {server._progress.watermark}; fields are kept "
        f"as {data_type}"
    )
    return receiver


def _make_validation_batches(server: DeepMelissaServer, receiver: Receiver) -> ValidationBatches:
    """Return the batches of the simulations for validation, which grow as these send."""
    return ValidationBatches(
        receiver.take_validation,
        make_batch_maker(server),
        server.batch_size,
        restored=[] if server._restored is None else server._restored.validation.samples,
        keeps_unsaved=server.checkpoint_interval > 0,
    )


def _make_checks(server: DeepMelissaServer) -> SampleChecks | None:
    """Return what shows each sample to the methods of the user's class that look at samples, if any do."""
    checks = sample_checks(type(server))
    if not checks:
        return None
    return SampleChecks(
        server._validate_data if "_validate_data" in checks else None,
        server._process_partial_data_reception if "_process_partial_data_reception" in checks else None,
        server._simulation,
    )


def _join_dataset(
    server: DeepMelissaServer, dataset: object, accounting: TrainedAccounting, checks: SampleChecks | None
) -> None:
    """Give a dataset of this package the study's waits, accounting and checks."""
    if isinstance(dataset, MelissaIterableDataset):
        admit = None if checks is None else checks.admit
        dataset.join_study(server._wait, accounting, server.batch_size, admit, server._ahead.take_restored)


def _obey_rank_zero(server: DeepMelissaServer, receiver: Receiver, listeners: Listeners) -> None:
    """Have rank 0 rule this rank's receiver; on rank 0, do nothing."""
    if isinstance(server._ranks, RankAgent):
        server._ranks.receive_with(
            LocalReception(
                cast(RankReceiver, receiver),
                server.buffer.native,
                server._registry,
                server._progress,
                simulation_finished=listeners.simulation_finished,
                reception_over=listeners.reception_over,
                tick=listeners.tick,
            )
        )


def _start_ensemble(server: DeepMelissaServer, receiver: Receiver, listeners: Listeners) -> Ensemble:
    """Start the control thread, on rank 0: from now on clients are asked for."""

    def own_figures(final_reason: str | None = None) -> RankFigures:
        return RankFigures.of(
            server.rank,
            server._progress,
            receiver,
            population=len(server.buffer),
            capacity=server.buffer.maxsize,
            final_reason=final_reason,
        )

    def close_own_ledger(final_reason: str, timeout: float | None) -> list[RankFigures]:
        return [own_figures(final_reason)]

    everywhere: StudyReceiver = receiver
    close_ledgers: CloseLedgers = close_own_ledger
    if isinstance(server._ranks, RankHub):
        ranked = RankedReceivers(
            server._ranks,
            cast(RankReceiver, receiver),
            server.buffer.native,
            server._registry,
            own_figures,
            server.nb_simulations,
        )
        everywhere, close_ledgers = ranked, ranked.close_ledgers
        balance = RankBalance(ranked.lift_watermark, server.batch_size, server._plan().simulation_timeout)
        control = server._start_control(
            ranked,
            listeners=listeners,
            figures=ranked.figures,
            settle=ranked.settle,
            watch_ranks=balance.look,
        )
    else:
        control = server._start_control(receiver, listeners=listeners, figures=lambda: [own_figures()])
    return Ensemble(
        everywhere,
        control,
        server._ending,
        close_ledgers,
        validation=lambda: server.report_extra,
    )
