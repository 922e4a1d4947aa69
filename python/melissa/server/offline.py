"""Studies that only run simulations: nothing is sent; one is done when its job has ended well."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from melissa.exceptions import FatalError, UnsupportedConfiguration
from melissa.launcher.message import Finished, JobUpdate, Progress, Register
from melissa.scheduler.job import State
from melissa.server.checkpoint.study_state import StudyState, advance_sampler
from melissa.server.control import Listeners, StudyControl
from melissa.server.environment import StudyEnvironment
from melissa.server.ranks.agent import RankAgent
from melissa.server.report import StudyReport
from melissa.server.simulation import Simulation, SimulationStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from melissa.server.base_server import BaseServer

__all__ = ["JobsOnly", "OfflineControl", "run_offline"]

logger = logging.getLogger("melissa")

POLL_INTERVAL = 0.1  # seconds


class JobsOnly:
    """Takes the receiver's place in a study in which nothing is received."""

    def __init__(self, planned: int) -> None:
        self._planned = planned
        self._final: set[int] = set()

    @property
    def reception_over(self) -> bool:
        """Whether every planned simulation has ended, or was given up."""
        return len(self._final) == self._planned

    def register(self, simulation_id: int, attempt: int, draw: int, parameters: Sequence[float]) -> None:
        """Let an attempt begin."""

    def finish(self, simulation_id: int, reason: str) -> None:
        """Take note that nothing more comes of a simulation."""
        self._final.add(simulation_id)

    def abandon_attempt(self, simulation_id: int) -> None:
        """Let an attempt go."""

    def changes(self, timeout: float) -> list[Any]:
        """Wait for as long; nobody reports anything."""
        time.sleep(timeout)
        return []

    def refusals(self) -> list[str]:
        """Return nothing: nobody can come."""
        return []

    def stop(self) -> None:
        """Tell nobody: no client listens."""


@dataclass(frozen=True)
class EndedBefore:
    """The simulations of an offline study before its server was restarted."""

    study: StudyState
    simulations: list[Simulation]

    @classmethod
    def read(cls, path: Path) -> EndedBefore | None:
        """Read what `OfflineControl` has written; None when no simulation had ended yet."""
        if not path.exists():
            return None
        study = StudyState.from_dict(json.loads(path.read_text(encoding="utf-8")))
        finished = {
            record["id"]
            for record in study.simulations
            if record["status"] == SimulationStatus.FINISHED.value
        }
        return cls(study, study.restored_simulations(finished))


class OfflineControl(StudyControl):
    """Runs the ensemble by the states of jobs alone, and keeps in a file which simulations have ended."""

    WAITS_FOR_CONNECTIONS = False
    WHAT_HOPELESS_CLIENTS_DO = "failed"
    CLIENT_ENVIRONMENT: ClassVar[dict[str, str]] = {"MELISSA_OFFLINE": "1"}
    STATE_FILE = Path(".melissa") / "simulations.json"
    """In the output folder."""

    def _end_of_job(self, simulation: Simulation, update: JobUpdate) -> None:
        is_done = update.job_state is State.TERMINATED and not simulation.is_final
        if not is_done or self._ending.stop_reason is not None:
            super()._end_of_job(simulation, update)
            return
        simulation.status = SimulationStatus.FINISHED
        self._receiver.finish(simulation.id, "")
        logger.info(f"simulation {simulation.id} has ended")
        if self._plan.remove_client_scripts:
            self._scripts.remove(simulation.id)
        self._listeners.simulation_finished(simulation)
        self._keep_state()

    def _drop(self, simulation: Simulation, what: str) -> None:
        super()._drop(simulation, what)
        self._keep_state()

    def _keep_state(self) -> None:
        unfinished = self.STATE_FILE.with_suffix(".json.new")
        try:
            unfinished.parent.mkdir(exist_ok=True)
            unfinished.write_text(json.dumps(self._state().to_dict()), encoding="utf-8")
            os.replace(unfinished, self.STATE_FILE)
        except OSError as error:
            logger.warning(
                f"cannot write {self.STATE_FILE}: {error.strerror}; if the server is restarted, simulations "
                "that have ended since run again"
            )

    def _has_proved_the_solver(self) -> bool:
        return self.count(SimulationStatus.FINISHED) > 0

    def _look_for_the_end(self) -> None:
        if self._is_over or not self._receiver.reception_over:
            return
        self._is_over = True
        self._listeners.reception_over()
        if self._ending.stop_reason is None and not self._has_proved_the_solver():
            raise FatalError(
                f"none of the {self._plan.nb_simulations} simulations has ended well.{self._failures.last}"
            )

    def _tell_progress(self, now: float) -> None:
        self._link.send(Progress(self._simulation_figures() | {"phase": self._progress.phase}))


def run_offline(server: BaseServer) -> int:
    """Run a server's simulations, from the first client to the report; return the exit status.

    Rank 0 does; other ranks wait for it. Raises what failed.
    """
    group_size = server.study_options["group_size"]
    if group_size != 1:
        raise UnsupportedConfiguration(
            f"study_options.group_size is {group_size}: this version runs one simulation per job, set it to 1"
        )
    # A signal from now on ends the study in order, on whichever rank it comes.
    server._ending.is_looked_at = True
    if isinstance(server._ranks, RankAgent):
        logger.info("rank 0 runs the simulations; this rank waits until it has")
        server._ranks.wait_for_end()
    else:
        _run_simulations(server)
    return server._ending.stop_status


def _run_simulations(server: BaseServer) -> None:
    link, ending = server._needed_link(), server._ending
    logger.info(
        f"{server.nb_simulations} simulations are planned; the study is offline: clients send nothing, and a "
        "simulation is done when its job has ended with status 0"
    )
    server._nb_validation = 0  # nobody would look at what they send
    server._progress.phase = "running simulations"
    link.send(Register([], os.getpid(), server.comm_size))
    jobs = JobsOnly(server.nb_simulations)
    listeners = Listeners(simulation_finished=lambda done: server.finished_groups.add(done.simulation_id))
    before = _before_restart(server, jobs)
    control = server._start_control(jobs, listeners=listeners, control_class=OfflineControl, before=before)
    while not jobs.reception_over and not ending.check():
        time.sleep(POLL_INTERVAL)
    control.finish()
    server._progress.phase = "finishing"
    report = _report(server, control)
    for name, value in report.content["simulations"].items():
        logger.info(f"simulations {name:<12} {value:>8}")
    report.write(Path(os.getcwd()) / "study_report.json")
    link.send(Finished(ending.stop_status, report.content))


def _before_restart(server: BaseServer, jobs: JobsOnly) -> EndedBefore | None:
    """Return the simulations of before a restart; None at a study's first start."""
    if StudyEnvironment.read().restart == 0:
        OfflineControl.STATE_FILE.unlink(missing_ok=True)
        return None
    before = EndedBefore.read(OfflineControl.STATE_FILE)
    if before is None:
        return None
    advance_sampler(server._draw, before.study.draws)
    ended = [simulation for simulation in before.simulations if simulation.is_final]
    for simulation in ended:
        jobs.finish(simulation.id, "")
    logger.info(f"the server was restarted: {len(ended)} simulations had ended before, the others run again")
    return before


def _report(server: BaseServer, control: StudyControl) -> StudyReport:
    content = {
        "simulations": control.simulation_counts(),
        "seconds": round(server._progress.seconds, 3),
    }
    return StudyReport(content, training_seconds=0.0)
