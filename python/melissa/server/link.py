"""The server's side of the channel to the launcher."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from melissa.launcher.message import Message, Ping, decode
from melissa.server.communicator import process_rank
from melissa.server.environment import StudyEnvironment
from melissa.utility.channel import Channel, ChannelClosed, connect
from melissa.utility.life import Life

__all__ = ["LauncherLink", "Link", "Pinger", "install_link", "launcher_link"]


class Link(Protocol):
    """Where a server sends what is for the launcher: see `LauncherLink`."""

    failure_told: bool

    def send(self, message: Message | bytes) -> None: ...  # noqa: D102
    def receive(self, timeout: float) -> Message | None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class LauncherLink:
    """Messages to and from the launcher; any thread may send, the control thread alone receives.

    `send` and `receive` raise `melissa.utility.channel.ChannelClosed` when the launcher is gone.
    """

    def __init__(self, channel: Channel, life: Life | None = None) -> None:
        self._channel = channel
        self._life = life
        self.failure_told = False
        """Whether the launcher has been told that the server failed."""

    @classmethod
    def connect(cls, environment: StudyEnvironment) -> LauncherLink:
        """Connect to the launcher that started this server."""
        channel = connect(environment.launcher_address, environment.key, environment.study_epoch, "server")
        life = connect(environment.launcher_address, environment.key, environment.study_epoch, "heartbeat")
        return cls(channel, Life(life))

    def send(self, message: Message | bytes) -> None:
        """Send a message, or the bytes of one that is encoded already (as study code of 2023 does)."""
        if isinstance(message, bytes):
            message = decode(message)
        self._channel.send(message.to_dict())

    def receive(self, timeout: float) -> Message | None:
        """Return the next message; None when none came within `timeout` seconds."""
        received = self._channel.recv(timeout)
        return None if received is None else decode(received)

    def close(self) -> None:
        """Close the channel."""
        if self._life is not None:
            self._life.close()
        self._channel.close()


_link: Link | None = None


def install_link(link: Link | None) -> None:
    """Make `link` the one that `launcher_link` returns; None to forget it."""
    global _link
    _link = link


def launcher_link(environment: Mapping[str, str] = os.environ) -> Link | None:
    """Return this process's link, made at the first call.

    None where no launcher has started the process, and on a server rank other than 0.
    """
    if _link is None and StudyEnvironment.is_given(environment) and process_rank(environment) == 0:
        install_link(LauncherLink.connect(StudyEnvironment.read(environment)))
    return _link


class Pinger:
    """A thread that tells the launcher every `period` seconds that the server's interpreter is alive.

    `Life` says beside it that the process is.
    """

    def __init__(self, link: Link, period: float) -> None:
        self._link = link
        self._period = period
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, target: Callable[[], None] | None = None) -> None:
        """Start the thread, which runs `target` (to call `loop`) or `loop`; one that runs goes on."""
        if not self.is_running:
            self._stop.clear()
            self._thread = threading.Thread(target=target or self.loop, name="melissa-pinger", daemon=True)
            self._thread.start()

    def loop(self) -> None:
        """Ping until `stop`, or until the launcher is gone, which the control thread finds out, too."""
        while not self._stop.is_set():
            try:
                self._link.send(Ping())
            except ChannelClosed:
                return
            self._stop.wait(self._period)

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)
