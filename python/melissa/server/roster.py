"""The simulations that were asked for so far: those of the ensemble, and those for validation."""

from __future__ import annotations

from melissa.server.simulation import Simulation, SimulationStatus

__all__ = ["Roster"]


class Roster:
    """The simulations, by their ids; the control thread adds to it, any thread may count."""

    def __init__(self) -> None:
        self.simulations: dict[int, Simulation] = {}
        """Every simulation that was asked for so far, but for those of `validation`."""
        self.validation: dict[int, Simulation] = {}
        """Every simulation that was asked for so far for validation; their ids follow those of the others."""

    def find(self, simulation_id: int) -> Simulation | None:
        """Return a simulation; None where nobody has asked for it."""
        return self.simulations.get(simulation_id) or self.validation.get(simulation_id)

    def live_jobs(self) -> list[Simulation]:
        """Return the simulations whose clients have jobs, waiting or running; those for validation first."""
        simulations = (*self.validation.values(), *self.simulations.values())
        return [simulation for simulation in simulations if simulation.has_job]

    def count(self, *statuses: SimulationStatus) -> int:
        """Return how many simulations of the ensemble have one of the statuses."""
        # A copy, made at once: the control thread adds simulations meanwhile.
        return sum(simulation.status in statuses for simulation in list(self.simulations.values()))

    def count_validation(self, status: SimulationStatus) -> int:
        """Return how many simulations for validation have the status."""
        return sum(simulation.status is status for simulation in list(self.validation.values()))
