"""Rank 0's side of the channels between server ranks: who has joined, what they said, who failed."""

from __future__ import annotations

import logging
import selectors
import threading
import time
from collections.abc import Callable, Iterable

from melissa.exceptions import ProtocolError, RankLostError
from melissa.launcher.message import Failure, decode
from melissa.server.ending import StudyEnding, StudyInterrupted
from melissa.server.failure import OtherRankFailed, failure_of, tell_launcher
from melissa.server.figures import RankFigures
from melissa.server.link import Link
from melissa.server.ranks.deadline import LastResort
from melissa.server.ranks.message import (
    Alive,
    Done,
    EndOfStudy,
    Figures,
    Joined,
    Leaving,
    RankFailure,
    RankMessage,
    Refusals,
    StateChange,
    StopStudy,
    StopWanted,
)
from melissa.server.roll_call import RankWait, named
from melissa.utility.channel import Channel, ChannelClosed, Listener
from melissa.utility.life import Life

__all__ = ["RankHub"]

logger = logging.getLogger("melissa")


class RankHub:
    """Rank 0's channels to all other ranks, and the thread that reads them.

    The thread passes on failures and stops between the ranks at once; what ranks say of simulations is kept
    for the control thread, the only one that decides. `link` leads to the launcher.
    """

    POLL_INTERVAL = 0.05  # seconds, as all below
    ALIVE_PERIOD = 1.0
    FIRST_FAILURE_WAIT = 0.3
    """How long failures are gathered before the first one is told."""

    def __init__(self, listener: Listener, nb_ranks: int, link: Link | None) -> None:
        self.nb_ranks = nb_ranks
        self.figures: dict[int, RankFigures] = {}
        """The last figures of each other rank."""
        self._listener = listener
        self._link = link
        self._channels: dict[int, Channel] = {}
        self._lives: dict[int, Life] = {}
        self._who: dict[int, str] = {}
        self._gone: set[int] = set()
        self._ending = StudyEnding()
        self._silence_timeout: float | None = None
        self._condition = threading.Condition()
        self._changes: list[tuple[int, StateChange]] = []
        self._refusals: list[str] = []
        self._done: dict[int, int] = {}
        self._request = 0
        self._asking = threading.Lock()
        self._heard_at: dict[int, float] = {}
        self._alive_at = 0.0
        self._stop_told = False
        self._is_leaving = False
        self._failures: list[RankFailure] = []
        self._failed_at = 0.0
        self._is_told = threading.Event()
        self._over = threading.Event()
        self._last_resort = LastResort()
        self._thread = threading.Thread(target=self._run, name="melissa-ranks", daemon=True)

    # At the start.

    def wait_for_ranks(self) -> None:
        """Wait until every other rank has connected, and start the thread.

        `RankLostError` names the ranks that have not come in time; `OtherRankFailed` says what has become of
        one that had. All that are there learn of what ends this wait.
        """
        try:
            self._gather()
        except OtherRankFailed:
            raise
        except StudyInterrupted as interruption:
            self.leave(interruption)
            raise
        except Exception as error:
            self._post(failure_of(error, rank=0), self._channels)
            raise
        self._thread.start()

    def _gather(self) -> None:
        arriving: list[Channel] = []
        rank_wait = RankWait(
            self._missing,
            f"rank 0 expects them at {self._listener.address}. Do their machines reach that address?",
        )
        while self._missing() or arriving:
            rank_wait.check()
            if (channel := self._listener.accept(self.POLL_INTERVAL)) is not None:
                arriving.append(channel)
            arriving = [channel for channel in arriving if not self._welcome(channel)]
            for rank, channel in self._channels.items():
                if rank not in self._gone:
                    self._read(rank, channel)
            self._look_around()
            for rank, life in self._lives.items():
                if life.is_closed and rank not in self._channels and rank not in self._gone:
                    self._lost(rank, "it has died while the ranks joined")
            self._ending.check()

    def _missing(self) -> list[int]:
        return [rank for rank in range(1, self.nb_ranks) if rank not in self._channels]

    def _welcome(self, channel: Channel) -> bool:
        """Take a rank's channel in when it has said whose it is; False as long as it has not."""
        try:
            if (first := channel.recv(0)) is None:
                return False
        except ChannelClosed as closed:
            who = f"the process at {channel.peer}, of {named(self._missing())}"
            raise RankLostError(f"{who}, is gone before it has said who it is: {closed}") from None
        message = decode(first, RankMessage)
        if not isinstance(message, Joined) or not self._take_in(message, channel):
            logger.warning(f"{channel.peer} came as {channel.role!r:.40} among the server's ranks: refused")
            channel.close()
        return True

    def _take_in(self, joined: Joined, channel: Channel) -> bool:
        rank = joined.rank
        self._who.setdefault(rank, f"server rank {rank} (process {joined.pid} on {joined.host})")
        if channel.role == "rank-life" and rank not in self._lives:
            self._lives[rank] = Life(channel)
        elif channel.role == "rank" and rank in self._missing():
            self._channels[rank] = channel
            self._heard_at[rank] = time.monotonic()
        else:
            return False
        return True

    def attach(
        self, ending: StudyEnding, silence_timeout: float | None, give_up: Callable[[], object]
    ) -> None:
        """Serve a study from now on: its ending is that of all ranks.

        A rank that says nothing for `silence_timeout` seconds is lost. `give_up` is called when the main
        thread does not come to its end after a failure.
        """
        self._last_resort.give_up = give_up
        for rank in self._heard_at:
            self._heard_at[rank] = time.monotonic()
        self._silence_timeout = silence_timeout
        if self._ending.error is not None:
            ending.fail(self._ending.error)
        if self._ending.stop_reason is not None:
            ending.stop(self._ending.stop_reason, self._ending.stop_status)
        self._ending = ending

    # What the control thread calls.

    def tell(self, message: RankMessage) -> None:
        """Send a message to all other ranks; a rank that is gone fails the study elsewhere."""
        values = message.to_dict()
        for rank, channel in list(self._channels.items()):
            try:
                channel.send(values)
            except ChannelClosed as closed:
                self._lost(rank, str(closed))

    def ask(self, make: Callable[[int], RankMessage]) -> int:
        """Send a request to all other ranks, made from its number; return that."""
        # Ranks do requests in the order of their numbers. Not under the condition, which the thread that
        # reads needs: a rank whose messages nobody reads reads none.
        with self._asking:
            self._request += 1
            request = self._request
            self.tell(make(request))
        return request

    def wait_for(self, request: int) -> None:
        """Wait until all ranks have done a request; raises what ends the study meanwhile."""
        with self._condition:
            while not self._have_done(request):
                self._ending.check()
                self._condition.wait(self.POLL_INTERVAL)

    def wait_shortly_for(self, request: int, timeout: float) -> bool:
        """Wait until all ranks have done a request, or `timeout` seconds; say whether they have."""
        with self._condition:
            self._condition.wait_for(lambda: self._have_done(request), timeout)
            return self._have_done(request) and not self._gone

    def _have_done(self, request: int) -> bool:
        """Say whether all ranks that are there have done a request."""
        return all(self._done.get(rank, 0) >= request for rank in self._channels if rank not in self._gone)

    def tell_stop(self) -> None:
        """Tell all other ranks that the study ends early."""
        self._stop_told = True
        reason = self._ending.stop_reason or "the study stops early"
        self._post(StopStudy(reason, self._ending.stop_status), self._channels)

    def take_changes(self) -> list[tuple[int, StateChange]]:
        """Return what ranks have said of simulations since the last call, in that order."""
        with self._condition:
            changes, self._changes = self._changes, []
        return changes

    def take_refusals(self) -> list[str]:
        """Return what ranks have refused since the last call."""
        with self._condition:
            refusals, self._refusals = self._refusals, []
        return refusals

    # Failures and the end.

    def check(self) -> None:
        """Raise what ends the study."""
        self._ending.check()

    def fail(self, error: BaseException) -> None:
        """Take part with a failure of this rank; returns when the launcher has been told of one."""
        self._failed(failure_of(error, rank=0))
        self._is_told.wait(10 * self.FIRST_FAILURE_WAIT)

    def leave(self, interruption: StudyInterrupted) -> None:
        """Have all other ranks leave as this one does, which was interrupted before all were ready."""
        self._is_leaving = True
        self._post(Leaving(str(interruption), interruption.status), self._channels)

    def end(self) -> None:
        """Tell all ranks that the study has ended; their channels are closed."""
        if self._over.is_set():
            return
        self._over.set()
        self._last_resort.cancel()
        self._post(EndOfStudy(), self._channels)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)
        for channel in self._channels.values():
            channel.close()
        for life in self._lives.values():
            life.close()

    def _post(self, message: RankMessage, ranks: Iterable[int]) -> None:
        for rank in list(ranks):
            try:
                self._channels[rank].post(message.to_dict())
            except ChannelClosed as closed:
                logger.debug(f"{self._who[rank]} could not be told {type(message).__name__}: {closed}")

    # The thread.

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            self._ending.fail(error)
            self._failed(failure_of(error, rank=0))
            while not self._is_told.is_set():
                self._tell_failure()
                time.sleep(self.POLL_INTERVAL)
            raise

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, channel in self._channels.items():
                selector.register(channel, selectors.EVENT_READ, rank)
            while not self._over.is_set():
                # The first turn reads what came together with the handshake, too.
                for rank, channel in self._channels.items():
                    if channel in selector.get_map() and not self._read(rank, channel):
                        selector.unregister(channel)
                self._look_around()
                selector.select(self.POLL_INTERVAL)

    def _read(self, rank: int, channel: Channel) -> bool:
        """Take all messages of a rank; False when its channel has come to its end."""
        try:
            channel.flush()
            while (received := channel.recv(0)) is not None:
                self._heard_at[rank] = time.monotonic()
                self._take(rank, decode(received, RankMessage))
        except (ChannelClosed, ProtocolError) as error:
            self._lost(rank, str(error))
            return False
        return True

    def _take(self, rank: int, message: object) -> None:
        match message:
            case StateChange():
                with self._condition:
                    self._changes.append((rank, message))
            case Figures(values):
                self.figures[rank] = RankFigures.from_dict(values)
            case Refusals(texts):
                with self._condition:
                    self._refusals += [f"server rank {rank}: {text}" for text in texts]
            case Done(request):
                with self._condition:
                    self._done[rank] = max(request, self._done.get(rank, 0))
                    self._condition.notify_all()
            case StopWanted(reason, status):
                self._ending.stop(f"{reason} (server rank {rank})", status)
            case Leaving(reason, status):
                interruption = StudyInterrupted(f"{reason} (server rank {rank})", status)
                self.leave(interruption)
                self._ending.fail(interruption)
                self._last_resort.status = status
                self._last_resort.set()
            case RankFailure():
                self._failed(message)
            case _:
                raise ProtocolError(
                    f"{self._who[rank]} sent {type(message).__name__}, which only rank 0 does"
                )

    def _look_around(self) -> None:
        if self._failures and not self._is_told.is_set():
            self._tell_failure()
        now = time.monotonic()
        if self._ending.stop_reason is not None and not self._stop_told:
            self.tell_stop()
        if now - self._alive_at > self.ALIVE_PERIOD:
            self._alive_at = now
            self._post(Alive(), self._channels)
        for rank, life in self._lives.items():
            if life.has_beaten():
                self._heard_at[rank] = now
        for rank, heard_at in self._heard_at.items():
            if self._silence_timeout is not None and now - heard_at > self._silence_timeout:
                self._lost(rank, f"it has said nothing for {now - heard_at:.0f} s")

    def _lost(self, rank: int, reason: str) -> None:
        with self._condition:
            self._gone.add(rank)
            self._condition.notify_all()
        if not self._over.is_set() and not self._is_leaving:
            text = f"{self._who[rank]} is gone: {reason}"
            self._failed(RankFailure(rank, RankLostError.__name__, text, at=time.time()))

    def _failed(self, failure: RankFailure) -> None:
        """Take note of a failure; a moment later the first one is told.

        One failure makes others: a collective call whose partner has died raises on all other ranks.
        """
        with self._condition:
            self._failures.append(failure)
            self._condition.notify_all()
        self._last_resort.set()

    def _tell_failure(self) -> None:
        """Tell the launcher and all ranks of the failure that came first, when it is time to."""
        with self._condition:
            failures = list(self._failures)
        now = time.monotonic()
        self._failed_at = self._failed_at or now
        ranks = {failure.rank for failure in failures}
        if len(ranks) < self.nb_ranks and now - self._failed_at < self.FIRST_FAILURE_WAIT:
            return
        # A rank that fails says so before it leaves: one that is gone has died, and that before all others
        # failed, since they only miss it.
        lost = RankLostError.__name__
        first = min(failures, key=lambda failure: (failure.kind != lost, failure.at))
        text = first.message
        if first.rank != 0 and f"rank {first.rank}" not in text:
            text += f" (server rank {first.rank})"
        if first.rank != 0:
            logger.error(f"the server fails: {first.kind}: {text}\n{first.traceback}".rstrip())
        if self._link is not None:
            tell_launcher(self._link, Failure(first.kind, text, first.traceback, first.kind == lost))
        self._post(first, self._channels)
        if first.rank != 0:
            self._ending.fail(OtherRankFailed(first.rank, f"{first.kind}: {first.message}"))
        self._is_told.set()
