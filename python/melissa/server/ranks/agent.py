"""What a server rank other than 0 does beside training: it obeys rank 0, and tells it what happens here."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from melissa.exceptions import FatalError, RankLostError
from melissa.launcher.message import Message, decode
from melissa.server.ending import StudyEnding, StudyInterrupted
from melissa.server.extension_log import forward_extension_log
from melissa.server.failure import OtherRankFailed, failure_of
from melissa.server.figures import RankFigures
from melissa.server.ranks.deadline import LastResort
from melissa.server.ranks.message import (
    AbandonAttempt,
    Alive,
    CloseLedger,
    Confirm,
    Done,
    EndOfStudy,
    Figures,
    GiveUp,
    Leaving,
    LiftWatermark,
    RankFailure,
    RankMessage,
    Refusals,
    RegisterAttempt,
    Settle,
    StateChange,
    StopStudy,
    StopWanted,
)
from melissa.server.simulation import Simulation, SimulationStatus
from melissa.utility.channel import Channel, ChannelClosed
from melissa.utility.life import Life

if TYPE_CHECKING:
    from melissa._melissa import Buffer
    from melissa.server.parameter_registry import ParameterRegistry
    from melissa.server.progress import StudyProgress
    from melissa.server.study_receiver import RankReceiver

__all__ = ["AgentLink", "LocalReception", "RankAgent"]

logger = logging.getLogger("melissa")


@dataclass
class LocalReception:
    """A rank's own part of a study, and whom its agent tells, in the agent's thread."""

    receiver: RankReceiver
    buffer: Buffer
    registry: ParameterRegistry
    progress: StudyProgress
    simulation_finished: Callable[[Simulation], None] = lambda simulation: None
    reception_over: Callable[[], None] = lambda: None
    tick: Callable[[dict[str, float]], None] = lambda counters: None

    def figures(self, rank: int, final_reason: str | None = None) -> RankFigures:
        """Return the rank's figures; a `final_reason` closes its ledger."""
        return RankFigures.of(
            rank,
            self.progress,
            self.receiver,
            population=self.buffer.population,
            capacity=self.buffer.capacity,
            final_reason=final_reason,
        )


class RankAgent:
    """The channel to rank 0, and the thread that obeys it."""

    POLL_INTERVAL = 0.02  # seconds, as all below
    FIGURES_PERIOD = 0.25
    FAREWELL_TIMEOUT = LastResort.GRACE + LastResort.GIVE_UP_GRACE + 1.0

    def __init__(self, channel: Channel, rank: int, life: Life | None = None) -> None:
        self.rank = rank
        self._channel = channel
        self._life = life
        self._ending = StudyEnding()
        self._silence_timeout: float | None = None
        self._reception: LocalReception | None = None
        self._heard_at = time.monotonic()
        self._figures_at = 0.0
        self._stop_told = False
        self._is_leaving = False
        self._reception_is_to_stop = False
        self._was_over = False
        self._failure: RankFailure | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._last_resort = LastResort()
        self._thread = threading.Thread(target=self._run, name="melissa-ranks", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def attach(
        self, ending: StudyEnding, silence_timeout: float | None, give_up: Callable[[], object]
    ) -> None:
        """Serve a study from now on: its ending is that of all ranks.

        Rank 0 is lost when it says nothing for `silence_timeout` seconds. `give_up` is called when the main
        thread does not come to its end after a failure.
        """
        self._last_resort.give_up = give_up
        self._heard_at = time.monotonic()
        self._silence_timeout = silence_timeout
        if self._ending.error is not None:
            ending.fail(self._ending.error)
        if self._ending.stop_reason is not None:
            ending.stop(self._ending.stop_reason, self._ending.stop_status)
        self._ending = ending

    def receive_with(self, reception: LocalReception) -> None:
        """Obey with the rank's receiver and buffer from now on: before rank 0 can ask for a client."""
        self._reception = reception

    # Failures and the end.

    def check(self) -> None:
        """Raise what ends the study."""
        self._ending.check()

    def fail(self, error: BaseException) -> None:
        """Tell rank 0 of a failure of this rank, unless another is known."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = failure_of(error, rank=self.rank)
        self._last_resort.set()
        self._tell(self._failure)

    def leave(self, interruption: StudyInterrupted) -> None:
        """Have all other ranks leave as this one does, which was interrupted before all were ready."""
        self._is_leaving = True
        self._tell(Leaving(str(interruption), interruption.status))

    def wait_for_end(self) -> None:
        """Wait until rank 0 says that the study has ended; raises what fails meanwhile."""
        while not self._over.wait(0.1):
            self._ending.check()

    def end(self) -> None:
        """Leave. After a failure rank 0 has a moment to say all that it knows before this process is gone."""
        self._over.wait(self.FAREWELL_TIMEOUT if self._failure is not None else 0.0)
        self._last_resort.cancel()
        self._over.set()
        self._channel.close()
        if self._life is not None:
            self._life.close()

    # The thread.

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                received = self._channel.recv(self.POLL_INTERVAL)
                while received is not None:
                    self._heard_at = time.monotonic()
                    self._obey(decode(received, RankMessage))
                    received = self._channel.recv(0)
                self._look_around()
        except ChannelClosed as closed:
            self._lost(str(closed))
        except Exception as error:
            self._ending.fail(error)
            self.fail(error)
            raise

    def _tell(self, message: RankMessage) -> None:
        try:
            self._channel.send(message.to_dict())
        except ChannelClosed as closed:
            self._lost(str(closed))

    def _lost(self, reason: str) -> None:
        if self._over.is_set():
            return
        if self._failure is not None or self._is_leaving:
            self._over.set()  # nobody is left to say farewell to
            return
        self._failed(RankFailure(0, RankLostError.__name__, f"server rank 0 is gone: {reason}"))
        logger.error(self._ending.error)

    def _failed(self, failure: RankFailure) -> None:
        with self._lock:
            if self._failure is not None:
                return
            self._failure = failure
        self._last_resort.set()
        self._ending.fail(OtherRankFailed(failure.rank, f"{failure.kind}: {failure.message}"))

    def _local(self) -> LocalReception:
        if self._reception is None:
            raise FatalError("rank 0 spoke of simulations before this rank receives")
        return self._reception

    def _obey(self, message: Message) -> None:
        match message:
            case RegisterAttempt():
                local = self._local()
                local.registry.record(message.simulation_id, message.draw, message.parameters)
                local.receiver.register(message.simulation_id, message.attempt, message.draw, message.numbers)
                self._tell(Done(message.request))
            case Confirm(simulation_id, steps_complete):
                local = self._local()
                local.receiver.confirm(simulation_id)
                local.simulation_finished(
                    Simulation(simulation_id, status=SimulationStatus.FINISHED, steps_complete=steps_complete)
                )
            case GiveUp(simulation_id, reason):
                self._local().receiver.finish(simulation_id, reason)
            case AbandonAttempt(simulation_id):
                self._local().receiver.abandon_attempt(simulation_id)
            case Settle(request):
                self._push(with_figures=True)
                self._tell(Done(request))
            case CloseLedger(request, final_reason):
                self._push(with_figures=False)
                self._tell(Figures(self._local().figures(self.rank, final_reason).to_dict()))
                self._tell(Done(request))
            case LiftWatermark():
                logger.warning("rank 0 has lifted the watermark: training starts with what is there")
                self._local().buffer.lift_watermark()
            case StopStudy(reason, status):
                self._stop_told = self._reception_is_to_stop = True
                self._ending.stop(reason, status)
                self._stop_reception()
            case RankFailure():
                self._failed(message)
            case Leaving(reason, status):
                self._is_leaving = True
                self._ending.fail(StudyInterrupted(reason, status))
                self._last_resort.status = status
                self._last_resort.set()
            case EndOfStudy():
                self._over.set()
            case Alive():
                pass
            case _:
                raise FatalError(f"rank 0 sent {type(message).__name__}, which only other ranks do")

    def _stop_reception(self) -> None:
        """End reception as rank 0 has said; a checkpoint that training is about to take comes first."""
        if not self._reception_is_to_stop or self._reception is None:
            return
        if not self._ending.holds_reception(self._reception.progress.saves_when_stopped):
            self._reception_is_to_stop = False
            self._reception.receiver.stop()

    def _look_around(self) -> None:
        self._stop_reception()
        if self._ending.stop_reason is not None and not self._stop_told:
            self._stop_told = True
            self._tell(StopWanted(self._ending.stop_reason, self._ending.stop_status))
        forward_extension_log()
        now = time.monotonic()
        self._push(with_figures=now - self._figures_at > self.FIGURES_PERIOD)
        if self._life is not None and self._life.has_beaten():
            self._heard_at = now
        if self._silence_timeout is not None and now - self._heard_at > self._silence_timeout:
            self._lost(f"it has said nothing for {now - self._heard_at:.0f} s")

    def _push(self, with_figures: bool) -> None:
        """Tell rank 0 what has changed here."""
        if self._reception is None:
            if with_figures:
                self._figures_at = time.monotonic()
                self._tell(Figures(RankFigures(self.rank).to_dict()))
            return
        receiver = self._reception.receiver
        for state in receiver.changes(0.0):
            self._tell(
                StateChange(
                    state.simulation_id,
                    state.attempt,
                    state.draw,
                    state.status,
                    state.steps_complete,
                    state.host,
                    state.error,
                )
            )
        if texts := receiver.refusals():
            self._tell(Refusals(texts))
        if receiver.reception_over and not self._was_over:
            self._was_over = with_figures = True
            self._reception.reception_over()
        if with_figures:
            self._figures_at = time.monotonic()
            figures = self._reception.figures(self.rank)
            self._tell(Figures(figures.to_dict()))
            self._reception.tick(figures.counters)


class AgentLink:
    """What stands in for the link to the launcher on a rank that has none: only failures go further."""

    def __init__(self, agent: RankAgent) -> None:
        self._agent = agent
        self.failure_told = False
        """Whether the launcher has been told that the server failed."""

    def send(self, message: Message | bytes) -> None:
        """Drop the message: pings that study code sends by hand are rank 0's business."""

    def receive(self, timeout: float) -> Message | None:
        """Return None: the launcher speaks to rank 0 alone."""
        return None

    def close(self) -> None:
        """Do nothing: the agent's channel stays."""
