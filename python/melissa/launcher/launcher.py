"""The launcher: starts the server, then the clients it asks for, watches all, and ends what is left.

One thread, one loop: the scheduler's jobs, the channel to the server, connections, signals and clocks all
meet in `Launcher._turn`. What the loop is about is the `Phase`.
"""

from __future__ import annotations

import enum
import logging
import selectors
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from melissa.exceptions import ProtocolError
from melissa.launcher import message
from melissa.launcher.client_jobs import ClientJobs
from melissa.launcher.console import StudyConsole
from melissa.launcher.restarts import Restarts
from melissa.launcher.server_channel import ServerChannel
from melissa.launcher.server_job import server_request
from melissa.launcher.signals import SignalWatch
from melissa.launcher.study_folder import StudyFolder
from melissa.launcher.summary import summary_table
from melissa.launcher.view import View, make_view
from melissa.launcher.wording import duration
from melissa.scheduler.factory import make_scheduler, nb_server_ranks
from melissa.scheduler.job import Job, State
from melissa.scheduler.scheduler import SchedulerError
from melissa.utility.channel import Listener
from melissa.utility.logger import ON_TERMINAL, configure_logger
from melissa.utility.process import describe_exit, last_lines

__all__ = ["Launcher"]

logger = logging.getLogger("melissa")

CONNECT_TIMEOUT = 300.0
"""Seconds that a started server has for connecting to the launcher."""
REGISTER_TIMEOUT = 1800.0
"""Seconds that a connected server has for registering: it imports and constructs the user's class then."""
FIRST_REMINDER = 30.0
"""Seconds after which the launcher says that it still waits for the server; then ever less often."""
STOP_TIMEOUT = 10.0
"""Seconds that a server which was asked to stop, or has failed, has for ending by itself.

They begin anew when it has written its last checkpoint, for which it may have to end a training step first;
``launcher_config.stop_timeout`` limits them all.
"""
FINISH_TIMEOUT = 60.0
"""Seconds between the server's last message and the end of its process."""
END_GRACE = 1.0
END_TIMEOUT = 5.0
_SERVER_STDERR_LINES = 60
_TERMINATED = 128 + signal.SIGTERM
"""Status of a server that SIGTERM has ended in order."""


class Phase(enum.Enum):
    """What the launcher is about."""

    STARTING = "starting the server"
    RUNNING = "running"
    RESTARTING = "the server has died, what it left is ended"
    FINISHING = "finished, the server is ending"
    STOPPING = "stopping"
    """The server was asked to stop, or has said that it failed: it may end by itself."""
    ENDING = "ending what is left"
    ENDED = "ended"


@dataclass(frozen=True)
class Ending:
    """Why the study has ended: the launcher's exit status, one line, and what belongs below that line.

    `blames_server` says that the last lines of the server's stderr belong there.
    """

    status: int
    reason: str
    details: str = ""
    blames_server: bool = False


class Launcher:
    """Runs one study.

    Parameters
    ----------
    config_dict
        The validated configuration, defaults merged.
    config_path
        Its file, which is copied into the output folder.
    project_dir
        Where relative paths of the configuration start.
    output_dir
        The folder of all results; made when absent.
    overwrite
        Replace the own files of an earlier study in `output_dir`.
    console
        Where the user looks; by default the terminal, errors on stderr.
    terminal_verbosity
        What of the log the terminal shows: 0 errors, 1 warnings, 2 progress, 3 everything.
    environment
        Further variables for all jobs.
    """

    def __init__(
        self,
        config_dict: dict[str, Any],
        *,
        config_path: Path,
        project_dir: Path,
        output_dir: Path,
        overwrite: bool = False,
        console: Console | None = None,
        terminal_verbosity: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Take the configuration; nothing is made or started before `run`."""
        self._config = config_dict
        self._config_path = config_path.absolute()
        self._project_dir = project_dir.absolute()
        self._folder = StudyFolder(output_dir.absolute())
        self._overwrite = overwrite
        self._console = console or StudyConsole()
        self._errors = console or StudyConsole(stderr=True)
        self._terminal_verbosity = terminal_verbosity
        self._environment = dict(environment or {})
        self._server_timeout = float(config_dict["launcher_config"]["server_timeout"])
        self._stop_limit = float(config_dict["launcher_config"]["stop_timeout"])
        self._keep_output = bool(config_dict["launcher_config"]["std_output"])
        self._nb_server_ranks = nb_server_ranks(config_dict["launcher_config"]) or 1

        self._phase = Phase.STARTING
        self._phase_deadline: tuple[float, Callable[[], None]] | None = None
        self._ending: Ending | None = None
        self._report: dict[str, Any] | None = None
        self._restarts = Restarts(bool(config_dict["launcher_config"]["fault_tolerance"]))
        self._server_saves = ""  # how, in words; empty where it need not be waited for
        self._stop_began = 0.0
        self._signals_seen = 0

    @property
    def report(self) -> Mapping[str, Any]:
        """What the server reported of the study that `run` has run; empty where it could not."""
        return self._report or {}

    def run(self) -> int:
        """Run the study to its end; return the exit status: 0 when it has finished, 130 after Ctrl-C, else 1.

        A study that is not even started raises `MelissaError`: another one lives in the output folder, say.
        """
        self._folder.open(self._config_path, overwrite=self._overwrite)
        try:
            configure_logger(
                self._folder.log,
                int(self._config["launcher_config"]["verbosity"]),
                terminal=True,
                terminal_verbosity=self._terminal_verbosity,
            )
            self._console.print(Text(f"output folder: {self._folder.path}"), soft_wrap=True)
            logger.info(f"study {self._config_path}, output folder {self._folder.path}")
            if self._folder.resumed is not None:
                self._console.print(Text(self._folder.resumed), soft_wrap=True)
                logger.info(self._folder.resumed)
            return self._run()
        finally:
            self._folder.close()

    def _run(self) -> int:
        """Run the study in its opened folder."""
        started = time.monotonic()
        self._view: View = make_view(self._console, self._config_path.name)
        try:
            self._supervise()
        except SchedulerError as error:
            self._conclude(1, str(error))
        except OSError as error:
            self._conclude(1, f"the launcher cannot go on: {error}")
            logger.exception("the launcher cannot go on", extra=ON_TERMINAL)
        except KeyboardInterrupt:
            # Before or after the time in which the loop hears of signals.
            self._conclude(128 + signal.SIGINT, "interrupted by SIGINT")
        except Exception as error:
            self._conclude(1, f"the launcher failed with {type(error).__name__}: {error}")
            logger.exception("the launcher failed", extra=ON_TERMINAL)
            raise
        finally:
            ending = self._ending or Ending(1, "the study ended for no known reason")
            state = "finished" if ending.status == 0 else "failed"
            try:
                self._view.close("interrupted" if ending.status > 1 else state)
            finally:
                self._folder.conclude(state, ending.reason)
        self._show_end(ending, time.monotonic() - started)
        return ending.status

    # ---- start and end of everything ----

    def _supervise(self) -> None:
        """Start the server and turn the loop until all has ended."""
        launcher_config = self._config["launcher_config"]
        self._scheduler = make_scheduler(launcher_config)
        self._question_period = float(launcher_config["timer_delay"])
        key = self._folder.create_key()
        with (
            SignalWatch() as self._signals,
            Listener(self._scheduler.launcher_host(), key, self._folder.epoch) as self._listener,
            selectors.DefaultSelector() as self._selector,
        ):
            self._channel = ServerChannel(self._selector, self._server_timeout, self._on_channel_lost)
            try:
                self._scheduler.start(keep_open=[self._folder.lock])
                for source in (self._signals, self._listener):
                    self._selector.register(source, selectors.EVENT_READ)
                if (jobs := self._scheduler.fileno()) is not None:
                    self._selector.register(jobs, selectors.EVENT_READ)
                self._start_server()
                while self._phase is not Phase.ENDED:
                    self._turn()
            finally:
                self._scheduler.close(END_GRACE if self._signals_seen < 2 else 0.0)
                self._channel.close()

    def _start_server(self) -> None:
        environment = self._environment | {
            "MELISSA_LAUNCHER_ADDRESS": self._listener.address,
            "MELISSA_KEY_FILE": str(self._folder.key),
            "MELISSA_STUDY_EPOCH": str(self._folder.epoch),
            "MELISSA_OUTPUT_DIR": str(self._folder.path),
            "MELISSA_PROJECT_DIR": str(self._project_dir),
        }
        self._clients = ClientJobs(
            self._scheduler,
            self._folder,
            environment,
            limit=int(self._config["launcher_config"]["job_limit"]) - 1,
            keep_output=self._keep_output,
        )
        request = server_request(
            self._folder,
            environment
            | {
                "MELISSA_RESTART": str(self._folder.epoch - 1),
                "MELISSA_NB_SERVER_RANKS": str(self._nb_server_ranks),
                "MELISSA_JOB_LIMIT": str(self._config["launcher_config"]["job_limit"]),
            },
            config_path=self._config_path,
            project_dir=self._project_dir,
            preprocessing_commands=self._config.get("server_config", {}).get("preprocessing_commands", []),
            keep_output=self._keep_output,
        )
        self._server_saves = ""
        self._server = self._scheduler.submit(request)
        self._next_question = time.monotonic()
        logger.info(f"server submitted, the launcher listens at {self._listener.address}")
        self._view.restart(self._folder.epoch - 1)
        self._server_submitted, self._next_reminder = time.monotonic(), FIRST_REMINDER
        self._enter(Phase.STARTING)

    def _enter(
        self, phase: Phase, timeout: float | None = None, on_timeout: Callable[[], None] | None = None
    ) -> None:
        """Go over to `phase`; `on_timeout` is called when it is still on after `timeout` seconds."""
        self._phase = phase
        self._phase_deadline = None
        if timeout is not None and on_timeout is not None:
            self._phase_deadline = time.monotonic() + timeout, on_timeout
        if phase is not Phase.ENDED:
            self._view.enter(phase.value)

    def _conclude(self, status: int, reason: str, details: str = "", *, blames_server: bool = False) -> None:
        """Write down why the study ends; the first reason is the one that counts."""
        if self._ending is None:
            self._ending = Ending(status, reason, details, blames_server)
            if status != 0:
                logger.error(f"{reason}\n{details}".rstrip(), extra=ON_TERMINAL)
        else:
            logger.info(f"after the end of the study: {reason}")

    def _end_jobs(self, grace: float = END_GRACE) -> None:
        """End every job that is left; the loop ends when they are gone."""
        self._clients.cancel_all(grace)
        if self._server.is_alive:
            self._scheduler.cancel([self._server], grace)
        if self._all_gone():
            self._enter(Phase.ENDED)
        else:
            # Without grace somebody is impatient, who need not wait for a cluster's slow end.
            limit = grace + self._end_timeout if grace > 0 else END_TIMEOUT
            self._enter(Phase.ENDING, limit, lambda: self._enter(Phase.ENDED))

    @property
    def _end_timeout(self) -> float:
        return max(END_TIMEOUT, self._scheduler.END_TIMEOUT)

    def _all_gone(self) -> bool:
        return not self._server.is_alive and not self._clients.alive

    # ---- the loop ----

    def _turn(self) -> None:
        """Wait for whatever comes next, and deal with it."""
        now = time.monotonic()
        wakes = [self._view.next_refresh]
        if self._phase_deadline is not None:
            wakes.append(self._phase_deadline[0])
        if (deadline := self._listener.deadline) is not None:
            wakes.append(deadline)
        wakes += self._channel.before_select()
        if self._is_server_watched:
            wakes.append(self._channel.silent_at)
        wakes.append(self._next_question)
        self._selector.select(max(0.0, min(wakes) - now))

        for number in self._signals.received():
            self._on_signal(number.name, 128 + number)
        self._poll_jobs()
        self._accept()
        self._hear_server()
        self._channel.hear_heartbeat()
        self._look_at_clocks()

    @property
    def _is_server_watched(self) -> bool:
        """Whether silence of the server is its death: while it is connected and not about to end."""
        return self._channel.is_open and self._phase in (Phase.STARTING, Phase.RUNNING)

    def _look_at_clocks(self) -> None:
        now = time.monotonic()
        self._channel.ping()
        if self._is_server_watched and self._channel.is_silent:
            self._server_died(
                f"nothing has come from the server for {self._channel.silence:.0f} s, more than twice the "
                f"server_timeout ({self._server_timeout:g} s)"
            )
        waited = now - self._server_submitted
        if self._phase is Phase.STARTING and waited >= self._next_reminder:
            self._next_reminder *= 2
            logger.warning(
                f"still waiting for the server after {duration(waited)}: {self._server_standing()}"
            )
        if self._phase_deadline is not None and now >= self._phase_deadline[0]:
            on_timeout = self._phase_deadline[1]
            self._phase_deadline = None
            on_timeout()
        self._view.refresh()

    def _on_signal(self, name: str, status: int) -> None:
        self._signals_seen += 1
        logger.info(f"{name} came")
        if self._signals_seen > 1:
            self._conclude(status, f"interrupted by {name}")
            self._end_jobs(grace=0.0)
            return
        if self._phase in (Phase.STARTING, Phase.RUNNING, Phase.RESTARTING) and self._ending is None:
            self._conclude(status, f"interrupted by {name}")
            if self._channel.is_open:
                self._channel.tell(message.Stop(f"the launcher got {name}"))
                self._let_server_end()
                if self._server_saves:
                    limit = f"within {self._stop_limit:g} s (stop_timeout); a second signal ends all at once"
                    self._console.print(Text(f"the server {self._server_saves}, {limit}"), soft_wrap=True)
                return
        self._end_jobs()

    # ---- jobs ----

    def _poll_jobs(self) -> None:
        if time.monotonic() >= self._next_question:
            self._next_question = time.monotonic() + self._question_period
            self._scheduler.ask()
        for job in self._scheduler.poll([self._server, *self._clients.alive]):
            if job is self._server:
                self._on_server_job(job)
            else:
                update = self._clients.update(job)
                if self._phase is not Phase.ENDING:
                    self._channel.tell(update)
        if self._all_gone():
            if self._phase is Phase.ENDING:
                self._enter(Phase.ENDED)
            elif self._phase is Phase.RESTARTING and not self._scheduler.has_remains:
                self._restart_server()

    def _on_server_job(self, job: Job) -> None:
        if job.is_alive:
            logger.info(f"the server's job is {job.state.name.lower()}, {job.identity}")
            if job.state is State.RUNNING and self._phase is Phase.STARTING and not self._channel.is_open:
                self._enter(Phase.STARTING, CONNECT_TIMEOUT, self._server_never_registered)
            return
        how = "could not be started" if job.state is State.ERROR else describe_exit(job.exit_code)
        logger.info(f"the server {how}")
        # Its last words may still be on their way: the end of the channel follows the end of the process.
        self._hear_server(until=time.monotonic() + 1.0)
        if self._phase is Phase.FINISHING:
            if job.exit_code != 0:
                logger.warning(f"the study has finished, but the server's process {how} after that")
            self._end_jobs()
        elif self._phase in (Phase.STARTING, Phase.RUNNING):
            early = " before it had finished the study" if job.exit_code == 0 else ""
            self._server_died(f"the server {how}{early}")
        elif self._phase is Phase.STOPPING:
            self._end_jobs()

    # ---- the server ----

    def _accept(self) -> None:
        channel = self._listener.accept(0)
        if channel is None:
            return
        if self._phase is Phase.RESTARTING:
            logger.info(f"a server that is being ended came from {channel.peer}")
            channel.close()
            return
        if self._channel.take(channel) and self._phase is Phase.STARTING:
            self._enter(Phase.STARTING, REGISTER_TIMEOUT, self._server_never_registered)

    def _hear_server(self, until: float | None = None) -> None:
        """Take the messages that are there; with `until` (monotonic), wait as long for the channel's end."""
        try:
            while (received := self._channel.receive(until)) is not None:
                self._take(received)
        except ProtocolError as error:
            self._channel.lose(str(error))
            self._server_died(str(error))

    def _on_channel_lost(self, reason: str) -> None:
        if self._phase in (Phase.STARTING, Phase.RUNNING) and self._server.is_alive:
            # A server that dies closes its channel first; how its process ended says more.
            lost = f"the server has left the launcher ({reason}), but its process goes on"
            self._enter(self._phase, STOP_TIMEOUT, lambda: self._server_died(lost))

    def _take(self, received: message.Message) -> None:
        match received:
            case message.Ping():
                pass
            case message.Progress(values):
                self._restarts.progress(values)
                self._view.report(values)
                self._note_saving(bool(values.get("is_saving")), bool(values.get("saves_when_stopped")))
            case message.Register(addresses, pid, nb_ranks):
                self._register(addresses, pid, nb_ranks)
            case message.SubmitClient():
                if self._phase is Phase.STARTING:
                    raise ProtocolError("the server asked for a client before it had registered")
                if self._phase is Phase.RUNNING:
                    self._clients.ask(received)
            case message.CancelClient():
                if (update := self._clients.cancel(received)) is not None:
                    self._channel.tell(update)
            case message.Failure(_, text, _, is_death=True):
                self._server_died(text)
            case message.Failure(kind, text, traceback):
                self._note_saving(False)
                self._conclude(1, f"the server failed with {kind}: {text}", traceback)
                self._let_server_end()
            case message.Finished(status, report):
                self._finish(status, report)
            case _:
                raise ProtocolError(f"the server sent {type(received).__name__}, which only a launcher sends")

    def _register(self, addresses: list[str], pid: int, nb_ranks: int) -> None:
        if len(addresses) not in (0, nb_ranks) or nb_ranks != self._nb_server_ranks:
            raise ProtocolError(
                f"the server registered with {nb_ranks} ranks and {len(addresses)} addresses for clients, "
                f"but was started with {self._nb_server_ranks} ranks"
            )
        where = f"at {', '.join(addresses)}" if addresses else "it receives nothing"
        logger.info(f"the server has registered: process {pid}, ranks: {nb_ranks}, {where}")
        self._restarts.registered()
        if addresses:
            self._clients.tell_servers(addresses)
        if self._phase is Phase.STARTING:
            self._enter(Phase.RUNNING)

    def _finish(self, status: int, report: dict[str, Any]) -> None:
        if status == _TERMINATED and self._ending is None:
            # At the end of its job's time, say: it has written a checkpoint, from which the next one goes on.
            self._server_died("the server was ended by SIGTERM, which was not the launcher's")
            return
        self._report = report
        if status != 0:
            self._conclude(1, f"the server ended the study with status {status}")
        if self._ending is not None:
            self._let_server_end()
            return
        self._conclude(0, "")
        logger.info("the server has finished the study")
        self._clients.stop_submitting()
        self._enter(Phase.FINISHING, FINISH_TIMEOUT, self._server_does_not_end)

    def _note_saving(self, is_saving: bool, saves_when_stopped: bool = False) -> None:
        said = "writes a checkpoint"
        if not is_saving:
            said = f"ends its training step, then {said}" if saves_when_stopped else ""
        if self._server_saves and not said and self._phase is Phase.STOPPING:
            # The checkpoint is written: now it can end as any other server does.
            self._enter(Phase.STOPPING, STOP_TIMEOUT, self._stop_takes_long)
        self._server_saves = said

    def _let_server_end(self) -> None:
        """Wait a little for a server that is ending by itself."""
        self._clients.stop_submitting()
        if self._phase in (Phase.STARTING, Phase.RUNNING):
            self._stop_began = time.monotonic()
            self._enter(Phase.STOPPING, STOP_TIMEOUT, self._stop_takes_long)

    def _stop_takes_long(self) -> None:
        """End a server that does not end by itself, but for one that writes a checkpoint, or is about to."""
        now = time.monotonic()
        left = self._stop_began + self._stop_limit - now
        is_heard = self._channel.is_open and not self._channel.is_silent
        if not (self._server_saves and is_heard):
            self._end_jobs()
        elif left > 0:
            logger.info(f"the server {self._server_saves}: it has {left:.0f} s for that (stop_timeout)")
            self._enter(Phase.STOPPING, min(STOP_TIMEOUT, left), self._stop_takes_long)
        else:
            logger.error(
                f"the server has not written its checkpoint within {self._stop_limit:g} s "
                "(launcher_config.stop_timeout) and is ended: the checkpoint before that one is kept"
            )
            self._end_jobs()

    def _server_standing(self) -> str:
        """Say how far a server is that has not registered yet."""
        if self._server.state is State.WAITING:
            return "its job waits for its start"
        if not self._channel.is_open:
            return f"its {self._server.identity} runs, but has not connected to the launcher"
        return "it has connected, and now imports and constructs the server class"

    def _server_never_registered(self) -> None:
        limit = duration(REGISTER_TIMEOUT if self._channel.is_open else CONNECT_TIMEOUT)
        self._server_died(f"the server has not registered within {limit}: {self._server_standing()}")

    def _server_does_not_end(self) -> None:
        logger.warning(
            f"the server has finished the study, but not ended within {FINISH_TIMEOUT:g} s: it is ended now"
        )
        self._end_jobs()

    def _server_died(self, reason: str) -> None:
        """Start the server again, which is dead or as good as that, or end the study.

        Never are there two servers: first everything of this start ends.
        """
        refusal = self._restarts.refusal(self._server)
        if self._ending is not None or refusal is not None:
            why_not = f"; it is not started again: {refusal}" if refusal and self._folder.epoch > 1 else ""
            self._conclude(1, f"{reason}{why_not}", self._server_stderr(), blames_server=True)
            self._end_jobs()
            return
        said = self._server_stderr()
        logger.warning(f"{reason}; all jobs are ended, then the server is started again\n{said}".rstrip())
        self._channel.lose("the server is started again")
        self._clients.cancel_all(END_GRACE)
        if self._server.is_alive:
            self._scheduler.cancel([self._server], END_GRACE)
        self._enter(Phase.RESTARTING, END_GRACE + self._end_timeout, lambda: self._cannot_restart(reason))

    def _restart_server(self) -> None:
        """Start the server of the study's next epoch: nothing of the earlier one is left."""
        self._listener.epoch = self._folder.begin_epoch()
        logger.warning(f"the server is started again: restart {self._folder.epoch - 1}")
        self._start_server()

    def _cannot_restart(self, reason: str) -> None:
        left = [job.name for job in (self._server, *self._clients.alive) if job.is_alive]
        jobs = f": {', '.join(left)}" if left else ""
        self._conclude(
            1,
            f"{reason}; it cannot be started again, for not all that it left has ended within "
            f"{END_GRACE + self._end_timeout:g} s{jobs}",
            blames_server=True,
        )
        self._end_jobs()

    def _server_stderr(self) -> str:
        return last_lines(self._server.error, _SERVER_STDERR_LINES)

    # ---- what the user sees at the end ----

    def _show_end(self, ending: Ending, seconds: float) -> None:
        if self._report is not None:
            restarts = self._folder.epoch - 1
            starts = {"server": {"restarts": restarts}} if restarts else {}
            self._console.print(summary_table(self._report | starts, f"study {self._config_path.name}"))
        if ending.status == 0:
            logger.info(f"the study has finished after {duration(seconds)}")
            return
        prefix = "error: " if ending.status == 1 else ""
        self._errors.print(Text(f"{prefix}{ending.reason}", "bold red"), soft_wrap=True)
        # A server that hung was ended only after the reason had been written down: its last lines came then.
        details = ending.details or (self._server_stderr() if ending.blames_server else "")
        if details:
            self._errors.print(Text(details), soft_wrap=True)
        self._errors.print(Text(self._where_to_look()), soft_wrap=True)

    def _where_to_look(self) -> str:
        logs = [self._folder.log, self._folder.path / "melissa_server_0.log"]
        if self._keep_output:
            logs.append(self._folder.stdout / "server.err")
        return "More is in: " + ", ".join(str(log) for log in logs if log.exists())
