"""What a study's simulations are run by: the plan, how parameters are drawn, who is told of what happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from melissa.server.simulation import Simulation

__all__ = ["Draw", "Listeners", "StudyPlan"]


@dataclass(frozen=True)
class StudyPlan:
    """What the configuration says about running simulations.

    `nb_validation` simulations are run beside the `nb_simulations`, for validation. `jobs_at_once` counts
    clients. `simulation_timeout` and `launcher_timeout` are seconds; None is never.
    """

    nb_simulations: int
    nb_parameters: int
    nb_time_steps: int | None
    jobs_at_once: int
    fault_tolerance: bool = True
    ignore_client_death: bool = False
    crashes_before_redraw: int = 1000
    simulation_timeout: float | None = 400.0
    launcher_timeout: float | None = 120.0
    remove_client_scripts: bool = False
    nb_validation: int = 0


class Draw(NamedTuple):
    """One client's parameters: as they were drawn, and as words for the solver's command line."""

    parameters: Iterable[Any]
    words: Iterable[Any]


@dataclass
class Listeners:
    """Whom the control thread tells: each is called in that thread, and must be quick."""

    simulation_finished: Callable[[Simulation], None] = lambda simulation: None
    reception_over: Callable[[], None] = lambda: None
    tick: Callable[[dict[str, float]], None] = lambda counters: None
