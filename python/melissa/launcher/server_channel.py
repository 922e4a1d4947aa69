"""The launcher's side of the server's channel: messages both ways, and both sides' signs of life."""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Callable

from melissa.launcher import message
from melissa.utility.channel import Channel, ChannelClosed

__all__ = ["ServerChannel"]

logger = logging.getLogger("melissa")

PING_PERIOD = 2.0


class ServerChannel:
    """The channel of the server that runs now, and beside it the one of its heartbeat; both may be absent.

    `timeout` is ``server_timeout``, twice of which the server may be silent. `lost` is called with the
    reason when the channel has ended. All is watched by `selector`.
    """

    def __init__(self, selector: selectors.BaseSelector, timeout: float, lost: Callable[[str], None]) -> None:
        """Begin without a server."""
        self._selector = selector
        self._timeout = timeout
        self._lost = lost
        self._channel: Channel | None = None
        self._heartbeat: Channel | None = None
        self._heard = 0.0
        self._pinged = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the server is connected."""
        return self._channel is not None

    @property
    def silence(self) -> float:
        """Seconds since the server gave its last sign of life."""
        return time.monotonic() - self._heard

    @property
    def is_silent(self) -> bool:
        """Whether that is so long that the server is as good as dead."""
        return self.silence > 2 * self._timeout

    @property
    def silent_at(self) -> float:
        """When the server will have been silent for so long."""
        return self._heard + 2 * self._timeout

    def take(self, channel: Channel) -> bool:
        """Take a connection that has come; say whether it is the server's, whose heartbeat comes after it."""
        if channel.role == "heartbeat" and self._channel is not None and self._heartbeat is None:
            self._heartbeat = channel
            self._selector.register(channel, selectors.EVENT_READ)
            return False
        if channel.role != "server" or self._channel is not None:
            logger.warning(f"{channel.peer} came as {channel.role!r:.40}: one server alone is expected")
            channel.close()
            return False
        logger.info(f"the server has connected from {channel.peer}")
        self._channel = channel
        self._heard = time.monotonic()
        self._selector.register(channel, selectors.EVENT_READ)
        return True

    def before_select(self) -> list[float]:
        """Have the selector look for room where something is unsent; return when the loop must wake up."""
        if self._channel is None:
            return []
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._channel.unsent else 0)
        self._selector.modify(self._channel, events)
        return [self._next_ping]

    @property
    def _next_ping(self) -> float:
        return self._pinged + min(PING_PERIOD, self._timeout / 4)

    def ping(self) -> None:
        """Give a sign of life, if it is time for that."""
        if self._channel is not None and time.monotonic() >= self._next_ping:
            self._pinged = time.monotonic()
            self.tell(message.Ping())

    def tell(self, what: message.Message) -> None:
        """Send a message, if there is a server, without waiting for it."""
        if self._channel is not None:
            try:
                self._channel.post(what.to_dict())
            except ChannelClosed as error:
                self.lose(str(error))

    def receive(self, until: float | None = None) -> message.Message | None:
        """Return the next message that is there, else None; with `until` (monotonic) wait for one as long.

        `ProtocolError` when it is none.
        """
        if self._channel is None:
            return None
        try:
            self._channel.flush()
            received = self._channel.recv(0 if until is None else max(0.0, until - time.monotonic()))
        except ChannelClosed as error:
            self.lose(str(error))
            return None
        if received is None:
            return None
        self._heard = time.monotonic()
        return message.decode(received)

    def hear_heartbeat(self) -> None:
        """Take note of the server's signs of life, which come when its interpreter is held up, too."""
        while self._heartbeat is not None:
            try:
                if self._heartbeat.recv(0) is None:
                    return
                self._heard = time.monotonic()
            except ChannelClosed:
                self._drop_heartbeat()

    def _drop_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._selector.unregister(self._heartbeat)
            self._heartbeat.close()
            self._heartbeat = None

    def lose(self, reason: str) -> None:
        """End the channel, if there is one."""
        if self._channel is None:
            return
        logger.info(f"the channel to the server is closed: {reason}")
        self._selector.unregister(self._channel)
        self._channel.close()
        self._channel = None
        self._drop_heartbeat()
        self._lost(reason)

    def close(self) -> None:
        """Close the connections at the end of everything."""
        for channel in (self._channel, self._heartbeat):
            if channel is not None:
                channel.close()
