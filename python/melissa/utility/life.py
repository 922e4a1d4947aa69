"""Signs of life between processes, which do not wait for an interpreter."""

from __future__ import annotations

from melissa._melissa import Heartbeat
from melissa.utility.channel import Channel, ChannelClosed, encode_frame

__all__ = ["Life"]


class Life:
    """Tells the other side of a channel four times a second that this process lives, and hears of its life.

    It tells so from a thread of the extension: an import, a solver that is called for validation or whatever
    else holds the interpreter's lock for minutes does not keep it from that. The channel is for nothing else.
    """

    PERIOD = 0.25  # seconds
    _BEAT = encode_frame({"type": "Alive"})

    def __init__(self, channel: Channel) -> None:
        self.is_closed = False
        """Whether `has_beaten` has found the channel closed."""
        self._channel = channel
        self._heartbeat = Heartbeat(channel.fileno(), self._BEAT, self.PERIOD)

    def has_beaten(self) -> bool:
        """Say whether the other side has told of its life since the last call."""
        has_beaten = False
        try:
            while self._channel.recv(0) is not None:
                has_beaten = True
        except ChannelClosed:
            # Who has to know of it learns it from the channel beside this one, once there is one.
            self.is_closed = True
        return has_beaten

    def close(self) -> None:
        """End it."""
        self._heartbeat.stop()
        self._channel.close()
