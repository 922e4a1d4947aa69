"""What a training server sets up so that time steps come: the receiver, the dataset, the ensemble."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from melissa._melissa import Receiver
from melissa.server.control import StudyControl
from melissa.server.deep_learning.accounting import TrainedAccounting
from melissa.server.deep_learning.dataset import MelissaIterableDataset
from melissa.server.deep_learning.hooks import sample_checks
from melissa.server.deep_learning.lanes import SampleChecks
from melissa.server.ensemble import Ensemble
from melissa.server.environment import StudyEnvironment
from melissa.utility.addresses import bind_address

if TYPE_CHECKING:
    from melissa.server.deep_learning.base_dl_server import DeepMelissaServer

__all__ = ["join_dataset", "make_checks", "make_ensemble", "open_receiver"]

logger = logging.getLogger("melissa")


def open_receiver(server: DeepMelissaServer) -> Receiver:
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
        simulation_timeout=server.study_options["simulation_timeout"],
    )
    logger.info(
        f"{server.nb_simulations} simulations are planned; the {server.buffer.kind.name} buffer holds "
        f"{server.buffer.maxsize} samples, its watermark is {server._progress.watermark}; fields are kept "
        f"as {data_type}"
    )
    return receiver


def make_checks(server: DeepMelissaServer) -> SampleChecks | None:
    """Return what shows each sample to the methods of the user's class that look at samples, if any do."""
    checks = sample_checks(type(server))
    if not checks:
        return None
    return SampleChecks(
        server._validate_data if "_validate_data" in checks else None,
        server._process_partial_data_reception if "_process_partial_data_reception" in checks else None,
        server._simulation,
    )


def join_dataset(
    server: DeepMelissaServer, dataset: object, accounting: TrainedAccounting, checks: SampleChecks | None
) -> None:
    """Give a dataset of this package the study's waits, accounting and checks."""
    if isinstance(dataset, MelissaIterableDataset):
        admit = None if checks is None else checks.admit
        dataset.join_study(server._wait, accounting, server.batch_size, admit)


def make_ensemble(server: DeepMelissaServer, receiver: Receiver, control: StudyControl) -> Ensemble:
    """Put the parts of the running ensemble together."""
    return Ensemble(
        server.buffer.native,
        receiver,
        control,
        server._progress,
        server._ending,
        planned=server.nb_simulations,
        rank=server.rank,
        validation=lambda: server.report_extra,
    )
