"""From `launcher_config` to the scheduler that it names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from melissa.exceptions import UnsupportedConfiguration
from melissa.scheduler.local import LocalScheduler
from melissa.scheduler.scheduler import Scheduler

__all__ = ["SCHEDULERS", "make_scheduler"]

logger = logging.getLogger("melissa")

SCHEDULERS = (LocalScheduler.name,)
"""Names of the schedulers that there are."""


def make_scheduler(launcher_config: Mapping[str, Any]) -> Scheduler:
    """Make the scheduler that the configuration names; `UnsupportedConfiguration` when there is none."""
    name = launcher_config["scheduler"]
    if name != LocalScheduler.name:
        raise UnsupportedConfiguration(
            f'launcher_config.scheduler: there is no scheduler "{name}"; there is {", ".join(SCHEDULERS)}'
        )
    ignored = [
        key
        for key in ("scheduler_arg", "scheduler_arg_server", "scheduler_arg_client")
        if launcher_config.get(key)
    ]
    if ignored:
        logger.warning(f'{", ".join(ignored)}: ignored, the scheduler "local" takes no arguments')
    return LocalScheduler()
