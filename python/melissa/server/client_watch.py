"""Who waits for whom: clients that hold the study up, while it runs and when it ends.

A client is cancelled by asking the launcher for it; what follows is decided when its job has ended.
"""

from __future__ import annotations

import logging
import time

from melissa.launcher.message import CancelClient
from melissa.server.link import Link
from melissa.server.roster import Roster
from melissa.server.simulation import Simulation, SimulationStatus

__all__ = ["ClientWatch"]

logger = logging.getLogger("melissa")


class ClientWatch:
    """Knows since when clients are away or cancelled, and since when the study waits for the last ones.

    `timeout` is `study_options.simulation_timeout`; None is never. `waits_for_connections` says whether
    clients are to connect.
    """

    REMINDER_PERIOD = 30.0  # seconds, as below
    CANCEL_GRACE = 10.0

    def __init__(
        self, roster: Roster, link: Link, timeout: float | None, *, waits_for_connections: bool
    ) -> None:
        self._roster = roster
        self._link = link
        self._timeout = timeout
        self._waits_for_connections = waits_for_connections
        self._cancelled_at: dict[int, float] = {}
        self._disconnected_at: dict[int, float] = {}
        self._waiting_since: float | None = None
        self._stopping_since: float | None = None
        self._reminder_at = time.monotonic()

    # What happens to clients.

    def was_submitted(self, simulation: Simulation) -> None:
        """Take note of a new attempt: nothing of the one before counts."""
        self._disconnected_at.pop(simulation.id, None)

    def has_changed(self, simulation: Simulation) -> None:
        """Take note of a simulation's status, which the receiver has told."""
        if simulation.status is SimulationStatus.DISCONNECTED:
            self._disconnected_at.setdefault(simulation.id, time.monotonic())
        else:
            self._disconnected_at.pop(simulation.id, None)
        if simulation.status is SimulationStatus.SILENT:
            timeout = self._timeout
            self.cancel(
                simulation,
                f"sent nothing for {timeout:g} s (study_options.simulation_timeout)"
                if timeout
                else "is silent",
            )

    def has_ended(self, simulation: Simulation) -> None:
        """Take note that the job of a client has ended."""
        self._cancelled_at.pop(simulation.id, None)

    def cancel(self, simulation: Simulation, reason: str) -> None:
        """Have the launcher end a client's job, once; one whose job has ended is nothing to cancel."""
        if simulation.id in self._cancelled_at or not simulation.has_job:
            return
        simulation.cancelled_because = reason
        logger.warning(f"client of simulation {simulation.id} {reason}: it is cancelled")
        self._cancelled_at[simulation.id] = time.monotonic()
        self._link.send(CancelClient(simulation.id, simulation.attempt))

    # While the study runs.

    def look(self, now: float) -> None:
        """Look for clients that hold the study up."""
        timeout = self._timeout
        for simulation in self._roster.live_jobs():
            lost_at = self._disconnected_at.get(simulation.id)
            if timeout is not None and lost_at is not None and now - lost_at > timeout:
                self.cancel(simulation, f"lost its connection and has not come back for {timeout:g} s")
        if now - self._reminder_at >= self.REMINDER_PERIOD:
            self._reminder_at = now
            for simulation in self._roster.live_jobs():
                self._remind(simulation, now)

    def _remind(self, simulation: Simulation, now: float) -> None:
        waited = now - simulation.job_since
        cancelled_at = self._cancelled_at.get(simulation.id)
        if cancelled_at is not None and now - cancelled_at > self.CANCEL_GRACE:
            logger.warning(f"the launcher has not ended the client of simulation {simulation.id} yet")
        elif waited <= self.REMINDER_PERIOD:
            return
        elif not simulation.job_is_running:
            logger.info(f"client of simulation {simulation.id} has waited {waited:.0f} s for the scheduler")
        elif self._waits_for_connections and simulation.status is SimulationStatus.PLANNED:
            logger.info(
                f"client of simulation {simulation.id} has run {waited:.0f} s and has not connected: "
                "its solver has not reached melissa_init yet"
            )

    # When it ends.

    def wait_for_the_last(self, now: float) -> None:
        """Training is over, and all that it was made of is here: solvers may still have something to do."""
        jobs = self._roster.live_jobs()
        if self._waiting_since is None:
            self._waiting_since = self._reminder_at = now
        timeout = self._timeout
        if timeout is not None and now - self._waiting_since > timeout:
            for simulation in jobs:
                self.cancel(simulation, f"has not ended {timeout:g} s after training")
            self._give_up_on_cancelled(now)
        elif jobs and now - self._reminder_at > self.REMINDER_PERIOD:
            self._reminder_at = now
            logger.info(
                f"training is over; {len(jobs)} clients still run: simulations "
                f"{', '.join(str(simulation.id) for simulation in jobs[:10])}"
            )

    @property
    def is_stopping(self) -> bool:
        """Whether clients have been told that the study stops early."""
        return self._stopping_since is not None

    def stop(self, now: float) -> None:
        """Cancel clients that are not connected; the others are told by the receiver."""
        self._stopping_since = now
        for simulation in self._roster.live_jobs():
            if simulation.status is SimulationStatus.PLANNED:
                self.cancel(simulation, "is not needed any more")

    def end_those_left(self, now: float, grace: float) -> None:
        """Cancel clients that have not ended within a `grace` of being told to stop."""
        if self._stopping_since is not None and now - self._stopping_since > grace:
            for simulation in self._roster.live_jobs():
                self.cancel(simulation, f"has not ended within {grace:g} s of being told to stop")
            self._give_up_on_cancelled(now)

    def _give_up_on_cancelled(self, now: float) -> None:
        for simulation in self._roster.live_jobs():
            if now - self._cancelled_at.get(simulation.id, now) > self.CANCEL_GRACE:
                logger.warning(
                    f"the launcher has not ended the client of simulation {simulation.id}; left to it"
                )
                simulation.has_job = False
