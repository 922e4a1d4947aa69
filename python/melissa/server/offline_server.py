"""The server of a study that only runs simulations."""

from __future__ import annotations

from typing import Any

from melissa.server.base_server import BaseServer
from melissa.server.simulation import PartialSimulationData, Simulation

__all__ = ["OfflineServer"]


class OfflineServer(BaseServer):
    """Launches all clients, receives nothing, and ends when all have ended.

    A simulation is done when its job has ended with status 0; one that fails is run again as the
    configuration says. A solver that calls ``melissa_init``, ``melissa_send`` and ``melissa_finalize`` runs
    without a change: they do nothing. A study's class says how parameters are drawn; ``dl_config`` is not
    needed.

    Parameters
    ----------
    config_dict
        A dictionary containing configuration settings; defaults of absent keys are put into it.
    """

    def __init__(self, config_dict: dict[str, Any]) -> None:
        BaseServer.__init__(self, config_dict)
        self.make_study_offline()

    def _check_group_size(self) -> None:
        """Check nothing: `start` does."""

    def start(self) -> None:
        """Run the study; raises what failed, after it was logged and the launcher was told."""
        self._start_offline()

    def _server_online(self) -> None:
        """Do nothing: there is nothing to act on."""

    def _server_finalize(self, exit_: int = 0) -> None:
        """End the study with the status `exit_`."""
        self._finalize_offline(exit_)

    def _receive(self) -> None:
        """Receive nothing."""

    def _process_partial_data_reception(
        self, simulation: Simulation, simulation_data: PartialSimulationData
    ) -> None:
        """Do nothing: no data come."""
