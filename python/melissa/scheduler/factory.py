"""From `launcher_config` to the scheduler that it names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from melissa.exceptions import UnsupportedConfiguration
from melissa.scheduler.arguments import job_options
from melissa.scheduler.job import JobKind
from melissa.scheduler.local import LocalScheduler
from melissa.scheduler.openmpi import OpenMpiScheduler
from melissa.scheduler.scheduler import Scheduler
from melissa.scheduler.slurm import SlurmScheduler
from melissa.scheduler.slurm_steps import SlurmStepScheduler, in_allocation

__all__ = ["SCHEDULERS", "default_job_limit", "make_scheduler", "nb_server_ranks"]

logger = logging.getLogger("melissa")

SCHEDULERS: dict[str, type[Scheduler]] = {
    kind.name: kind for kind in (LocalScheduler, OpenMpiScheduler, SlurmScheduler)
}
"""The schedulers that there are, by name."""


def _here(name: str) -> type[Scheduler]:
    """Return the scheduler of that name that serves where this process stands."""
    if name == SlurmScheduler.name and in_allocation():
        return SlurmStepScheduler
    return SCHEDULERS[name]


def make_scheduler(launcher_config: Mapping[str, Any]) -> Scheduler:
    """Make the scheduler that the configuration names; `UnsupportedConfiguration` when there is none."""
    name = launcher_config["scheduler"]
    if name not in SCHEDULERS:
        raise UnsupportedConfiguration(
            f'launcher_config.scheduler: there is no scheduler "{name}"; there is {", ".join(SCHEDULERS)}'
        )
    scheduler = _here(name)(job_options(launcher_config))
    ignored = [
        key
        for key in ("scheduler_arg", "scheduler_arg_server", "scheduler_arg_client")
        if launcher_config.get(key)
    ]
    if ignored and not scheduler.wants_arguments:
        logger.warning(f'{", ".join(ignored)}: ignored, the scheduler "{name}" takes no arguments')
    return scheduler


def nb_server_ranks(launcher_config: Mapping[str, Any]) -> int | None:
    """Return how many ranks the server has; None where the configuration does not say that."""
    scheduler = SCHEDULERS.get(launcher_config["scheduler"])
    return None if scheduler is None else scheduler.nb_ranks(job_options(launcher_config)[JobKind.SERVER])


def default_job_limit(launcher_config: Mapping[str, Any]) -> int:
    """Return how many jobs may live at once, the server included, when the configuration does not say."""
    name = launcher_config["scheduler"]
    return (_here(name) if name in SCHEDULERS else Scheduler).job_limit(job_options(launcher_config))
