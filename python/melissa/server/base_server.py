"""What every server has, whether it trains or not."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from melissa.exceptions import ConfigurationFileError, FatalError
from melissa.launcher.defaults import merge_defaults
from melissa.launcher.message import Message, decode
from melissa.server.checkpoint.restart import RestoredCheckpoint
from melissa.server.checkpoint.study_state import StudyState
from melissa.server.client_script import ClientScripts
from melissa.server.communicator import make_communicator
from melissa.server.control import Draw, Listeners, StudyControl, StudyPlan
from melissa.server.ending import StudyEnding, StudyInterrupted
from melissa.server.environment import StudyEnvironment
from melissa.server.failure import report_failure
from melissa.server.figures import RankFigures
from melissa.server.link import Link, launcher_link
from melissa.server.offline import run_offline
from melissa.server.parameter_registry import ParameterRegistry
from melissa.server.parameters import make_parameter_sampler
from melissa.server.progress import StudyProgress
from melissa.server.ranks.agent import AgentLink, RankAgent
from melissa.server.ranks.joining import server_ranks
from melissa.server.simulation import PartialSimulationData, Simulation
from melissa.server.validation_draws import ValidationDraws

__all__ = ["BaseServer", "SimulationsBefore"]

logger = logging.getLogger("melissa")


class SimulationsBefore(Protocol):
    """How the simulations stood before a restart."""

    @property
    def study(self) -> StudyState: ...  # noqa: D102
    @property
    def simulations(self) -> list[Simulation]: ...  # noqa: D102


class BaseServer(ABC):
    """Base of all servers.

    Parameters
    ----------
    config_dict
        The study's configuration. Defaults of absent keys are put into it; the server keeps this very
        dictionary.
    checkpoint_file
        Name of the file of a server's own state, for servers that write one.

    Attributes
    ----------
    comm, rank, comm_size
        The communicator of the server's ranks, this rank, and the number of ranks.
    client_comm_size
        Number of MPI ranks of a client.
    config_dict, study_options
        The configuration, and its section of that name; ``config`` is the first one's name of 2023.
    nb_parameters
        Drawn inputs per simulation.
    nb_time_steps
        Time steps that each simulation sends; 0 until the first simulation has shown it, if the configuration
        does not say.
    nb_groups, finished_groups
        Number of simulations, and the ids of those that have finished sending.
    no_fault_tolerance
        Whether a failed client ends the study.
    verbose_level
        ``study_options.verbosity``.

    Raises
    ------
    ConfigurationFileError
        A section that every server needs is missing.
    """

    def __init__(self, config_dict: dict[str, Any], checkpoint_file: str = "checkpoint.pkl") -> None:
        # No super().__init__(): study code joins a server with mix-ins and calls each one's constructor by
        # name.
        for section in ("study_options", "client_config"):
            if not isinstance(config_dict.get(section), dict):
                raise ConfigurationFileError(
                    f'the configuration has no "{section}": every server needs that object'
                )
        merge_defaults(config_dict)
        self.config_dict = config_dict
        self.config = config_dict
        self.checkpoint_file = checkpoint_file
        self.study_options: dict[str, Any] = config_dict["study_options"]
        launcher_config = config_dict["launcher_config"]

        self._ending = StudyEnding()
        self._progress = StudyProgress()
        self._registry = ParameterRegistry()
        self._control: StudyControl | None = None
        self._restored: RestoredCheckpoint | None = None
        self._link: Link | None = launcher_link()

        self.comm = make_communicator(check=self._check_ending)
        self._ranks = server_ranks(self._link)
        if self._ranks is not None:
            # Twice the ping period is death, as it is for the launcher.
            timeout = 2 * launcher_config["server_timeout"]
            self._ranks.attach(self._ending, timeout, lambda: self._server_finalize(1))
        if isinstance(self._ranks, RankAgent):
            self._link = AgentLink(self._ranks)
        self.rank = self.comm.rank
        self.comm_size = self.comm.size
        self.client_comm_size = 1
        self.nb_parameters: int = self.study_options["nb_parameters"]
        self.nb_time_steps: int = self.study_options["nb_time_steps"] or 0
        self.nb_simulations: int = self.study_options["parameter_sweep_size"]
        self.nb_groups = self.nb_simulations // self.study_options["group_size"]
        self.finished_groups: set[int] = set()
        self.verbose_level: int = self.study_options["verbosity"]
        self.no_fault_tolerance = not launcher_config["fault_tolerance"]
        self._job_limit: int = launcher_config["job_limit"]
        self._is_receiving = False
        self._is_offline = False
        self._nb_validation = 0
        self._validation_draws: ValidationDraws | None = None
        self.exit_status = 0
        self._parameter_sampler: Any = None

    # Parameters.

    def set_parameter_sampler(self, sampler_t: Any, **kwargs: Any) -> None:
        """Choose how parameters are drawn.

        Parameters
        ----------
        sampler_t
            A `melissa.server.parameters.ParameterSamplerType`, or a class.
        **kwargs
            What the sampler is constructed with; ``nb_params``, ``nb_sims`` and ``seed`` come from the
            configuration unless they are given.
        """
        defaults = {
            "nb_params": self.nb_parameters,
            "nb_sims": self.nb_simulations,
            "seed": self.study_options["seed"],
        }
        self._parameter_sampler = make_parameter_sampler(sampler_t, **(defaults | kwargs))

    def draw_parameters(self) -> list[Any]:
        """Return the parameters of one more client: a flat list, in the order of the solver's command line.

        Called in the control thread, once per simulation in the order of ids, and once more for a simulation
        that is given fresh parameters. A study that draws in its own way overrides it. `FatalError` when no
        sampler was set.
        """
        return list(self._draw_from_sampler().words)

    def _draw(self) -> Draw:
        """Draw one client's parameters, by the study's own `draw_parameters` if it has one."""
        if type(self).draw_parameters is not BaseServer.draw_parameters:
            drawn = list(self.draw_parameters())
            return Draw(drawn, drawn)
        return self._draw_from_sampler()

    def _draw_from_sampler(self) -> Draw:
        if self._parameter_sampler is None:
            raise FatalError(self._no_sampler())
        drawn = self._parameter_sampler.draw()
        return Draw(drawn, self._parameter_sampler.process_drawn(drawn))

    def _prepare_validation(self) -> None:
        """Draw the parameters of the simulations for validation, before those of any other."""
        has_own_draw = type(self).draw_parameters is not BaseServer.draw_parameters
        sampler = None if has_own_draw else self._parameter_sampler
        self._validation_draws = ValidationDraws(sampler, self._draw, self._nb_validation)

    def _no_sampler(self) -> str:
        return (
            f"{type(self).__name__} has no way to draw parameters: call self.set_parameter_sampler(...) in "
            "__init__, for instance with ParameterSamplerType.RANDOM_UNIFORM, l_bounds and u_bounds; or "
            "override draw_parameters"
        )

    # Studies without data.

    def make_study_offline(self) -> None:
        """Have simulations run without sending anything: solvers keep their results to themselves.

        To be called before `start`. A simulation is done when its job has ended with status 0. Calls of
        Melissa in a solver do nothing; a server that trains makes no model and trains nothing.
        """
        self._is_offline = True

    def _start_offline(self) -> None:
        try:
            if self._parameter_sampler is None and type(self).draw_parameters is BaseServer.draw_parameters:
                raise FatalError(self._no_sampler())
            try:
                status = run_offline(self)
            except StudyInterrupted as interruption:
                status = interruption.status
            self._server_finalize(status)
        except BaseException as error:
            self._report_failure(error)
            self._server_finalize(1)
            raise

    def _finalize_offline(self, exit_: int) -> None:
        self.exit_status = exit_
        if exit_ == 1 and self._control is not None:
            self._control.leave()
        if self._ranks is not None:
            self._ranks.end()
        logger.info(f"Server finalizing with status {exit_}")

    # The launcher, as study code of 2023 addresses it.

    @property
    def launcherfd(self) -> Link | None:
        """The link to the launcher; None where no launcher has started this process.

        On a server rank other than 0 it takes messages, and drops them: rank 0 alone talks to the launcher.
        """
        return self._link

    def encode_msg(self, message: Message) -> bytes:
        """Return the bytes of a message, for ``launcherfd.send``."""
        return message.encode()

    def decode_msg(self, data: bytes) -> list[Message]:
        """Return the messages in `data`."""
        return [decode(data)]

    # The parts that run a study.

    def _check_ending(self) -> None:
        self._ending.check()

    def _needed_link(self) -> Link:
        if self._link is None:
            StudyEnvironment.read()  # says which variable is missing
            raise FatalError("this server has no link to a launcher")
        return self._link

    def _report_failure(self, error: BaseException) -> None:
        # The study ends by this: a signal that comes from now on is not to interrupt how.
        self._ending.is_looked_at = True
        report_failure(error, self._link, self._ranks)

    def _plan(self) -> StudyPlan:
        """Collect what the configuration says about running simulations."""
        server_timeout = self.config_dict["launcher_config"]["server_timeout"]
        return StudyPlan(
            nb_simulations=self.nb_simulations,
            nb_parameters=self.nb_parameters,
            nb_time_steps=self.nb_time_steps or None,
            jobs_at_once=max(1, self._job_limit - 1),
            fault_tolerance=not self.no_fault_tolerance,
            ignore_client_death=self.config_dict["ignore_client_death"],
            crashes_before_redraw=self.study_options["crashes_before_redraw"],
            simulation_timeout=self.study_options["simulation_timeout"],
            launcher_timeout=2 * server_timeout,
            remove_client_scripts=self.study_options["remove_client_scripts"],
            nb_validation=self._nb_validation,
        )

    def _start_control(
        self,
        receiver: Any,
        *,
        listeners: Listeners,
        figures: Callable[[], list[RankFigures]] | None = None,
        settle: Callable[[], None] = lambda: None,
        watch_ranks: Callable[[list[RankFigures], list[Simulation]], None] | None = None,
        control_class: type[StudyControl] = StudyControl,
        before: SimulationsBefore | None = None,
    ) -> StudyControl:
        """Start the control thread: from now on clients are asked for.

        A server that was restarted goes on with the simulations of `before`, or those of its checkpoint.
        """
        client_config = self.config_dict["client_config"]
        scripts = ClientScripts(
            Path(os.getcwd()),
            client_config["executable_command"],
            client_config["command_default_args"],
            client_config["preprocessing_commands"],
        )
        self._control = control_class(
            self._plan(),
            draw=self._draw,
            draw_validation=self._validation_draws,
            scripts=scripts,
            receiver=receiver,
            link=self._needed_link(),
            registry=self._registry,
            progress=self._progress,
            ending=self._ending,
            report_failure=self._report_failure,
            listeners=listeners,
            figures=figures,
            settle=settle,
            watch_ranks=watch_ranks,
        )
        before = before or self._restored
        if before is not None:
            validation = [] if self._restored is None else self._restored.validation.simulations
            self._control.resume(before.study, before.simulations, validation)
        self._control.start()
        return self._control

    def _simulation_finished(self, simulation: Simulation) -> None:
        """Take note of a simulation that has sent everything; called in the control thread."""
        self.finished_groups.add(simulation.simulation_id)
        if self.nb_time_steps == 0:
            self.nb_time_steps = simulation.steps_complete
            logger.info(
                f"simulations send {self.nb_time_steps} time steps each, as the first one to end shows"
            )

    # What a kind of server does.

    @abstractmethod
    def _check_group_size(self) -> None:
        """Check if the group size was correctly set."""

    @abstractmethod
    def start(self) -> None:
        """Run the study, from the first client to the report."""

    @abstractmethod
    def _server_online(self) -> None:
        """Receive data, and act on them."""

    @abstractmethod
    def _server_finalize(self, exit_: int = 0) -> None:
        """End the study with the status `exit_`."""

    @abstractmethod
    def _receive(self) -> None:
        """Start reception."""

    @abstractmethod
    def _process_partial_data_reception(
        self, simulation: Simulation, simulation_data: PartialSimulationData
    ) -> None:
        """Act on a part of a sample."""
