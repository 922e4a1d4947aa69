"""The control channel between launcher and server: JSON frames over TCP, between two that know the study key.

A frame is a length (4 bytes, big-endian) and that many bytes of one JSON object. Before anything else is
accepted both sides prove the key, the listening one first::

    connecting                                              listening
    Hello {protocol, software, role, epoch, nonce}   ->
                                                     <-     Challenge {protocol, nonce, proof}
    Proof {proof}                                    ->
                                                     <-     Accepted {} | Refused {code, message}

A proof is an HMAC-SHA256 over the side that proves, protocol, role, epoch and both nonces, so that neither
side's proof serves for the other or for another connection. Frames of peers that have not proved the key
are small, few and have to come soon; nobody waits for such a peer, because the listener serves all of them
from one poll.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import secrets
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from melissa.exceptions import AuthenticationError, MelissaError, ProtocolError
from melissa.utility.addresses import bind_address

__all__ = ["Channel", "ChannelClosed", "Listener", "connect", "encode_frame"]

logger = logging.getLogger("melissa")

PROTOCOL = 1
SOFTWARE = "melissa-python"
NONCE_SIZE = 32

HANDSHAKE_FRAME_LIMIT = 4096
"""Bytes in a frame of a peer that has not proved the key."""
HANDSHAKE_TIMEOUT = 5.0
"""Seconds within which a connection must prove the key."""
PENDING_LIMIT = 64
"""Handshakes at once; further connections wait in the kernel's backlog."""
FRAME_LIMIT = 16 * 1024 * 1024
"""Bytes in a frame between peers that have proved the key."""
SEND_TIMEOUT = 60.0
"""Seconds that `Channel.send` waits for a peer that does not read."""

_LENGTH = struct.Struct(">I")


class ChannelClosed(MelissaError, ConnectionError):
    """The peer of a control channel is gone, or broke the protocol; the text says which."""


def encode_frame(message: Mapping[str, Any]) -> bytes:
    """Return a message as it travels on a channel."""
    payload = json.dumps(message).encode()
    if len(payload) > FRAME_LIMIT:
        raise ValueError(f"a message of {len(payload)} bytes is too long: {FRAME_LIMIT} bytes are the limit")
    return _LENGTH.pack(len(payload)) + payload


def _take_frame(received: bytearray, limit: int) -> dict[str, Any] | None:
    """Cut the first whole frame off `received` and return its message; None while it is incomplete."""
    if len(received) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(received)
    if length > limit:
        raise ProtocolError(f"a frame of {length} bytes was announced, {limit} bytes are the limit")
    end = _LENGTH.size + length
    if len(received) < end:
        return None
    payload = bytes(received[_LENGTH.size : end])
    del received[:end]
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError):
        raise ProtocolError(f"a frame is not JSON: it starts with {payload[:40]!r}") from None
    if not isinstance(message, dict):
        raise ProtocolError(f"a frame holds {type(message).__name__}, an object was expected")
    return message


def _wait(connection: socket.socket, events: int, deadline: float | None) -> bool:
    """Wait until `connection` is ready for `events`; False when `deadline` (monotonic) passes before that."""
    descriptor = connection.fileno()
    if descriptor < 0:
        return True  # closed meanwhile: the caller's read or write says so
    poll = select.poll()
    poll.register(descriptor, events)
    timeout = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    return bool(poll.poll(timeout))


class Channel:
    """One authenticated connection; made by `connect` and by `Listener.accept`.

    `send` and `post` may be called by several threads at once, each frame stays whole. `role` is what the
    connecting side said it was, `peer` its address.
    """

    def __init__(self, connection: socket.socket, peer: str, role: str, received: bytes = b"") -> None:
        """Take over a connection whose handshake is done; `received` came right after that."""
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.peer = peer
        self.role = role
        self._connection = connection
        self._received = bytearray(received)
        self._unsent = bytearray()
        self._receiving = threading.RLock()
        self._sending = threading.RLock()

    def __repr__(self) -> str:
        """Name the peer."""
        return f"<Channel with the {self.role} at {self.peer}>"

    def fileno(self) -> int:
        """The socket's descriptor, for a selector; -1 once closed.

        When it is readable, call `recv(0)` until that returns None: one read may bring several messages.
        """
        return self._connection.fileno()

    def send(self, message: Mapping[str, Any], timeout: float = SEND_TIMEOUT) -> None:
        """Send `message`; return when the kernel has all of it.

        `ChannelClosed` when the peer is gone or has not read for `timeout` seconds.
        """
        frame = encode_frame(message)
        with self._sending:
            self._unsent += frame
            if not self._write(time.monotonic() + timeout):
                raise self._fail(f"{self.peer} has not read its messages for {timeout:g} s")

    def post(self, message: Mapping[str, Any]) -> None:
        """Send `message` without waiting: what the kernel does not take now is kept for `flush`.

        `ChannelClosed` when the peer is gone or leaves too much unread.
        """
        frame = encode_frame(message)
        with self._sending:
            if len(self._unsent) > FRAME_LIMIT:
                raise self._fail(f"{self.peer} has left {len(self._unsent)} bytes of messages unread")
            self._unsent += frame
            self._write(0.0)

    def flush(self) -> None:
        """Send what `post` had to keep, without waiting; to be called when the descriptor is writable."""
        with self._sending:
            self._write(0.0)

    @property
    def unsent(self) -> int:
        """Bytes that wait for `flush`."""
        return len(self._unsent)

    def recv(self, timeout: float | None = None) -> dict[str, Any] | None:
        """Return the next message, or None when none came within `timeout` seconds (None: wait for one).

        `ChannelClosed` when the peer is gone, or sent what is no message; the channel is closed then.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._receiving:
            while True:
                try:
                    message = _take_frame(self._received, FRAME_LIMIT)
                except ProtocolError as error:
                    raise self._fail(f"{self.peer}: {error}") from None
                if message is not None:
                    return message
                if self._read():
                    continue
                if timeout == 0 or not _wait(self._connection, select.POLLIN, deadline):
                    return None

    def close(self) -> None:
        """Close the connection; a thread that waits in `recv` or `send` gets `ChannelClosed`."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        # Only when nobody is inside: a closed descriptor's number may belong to another file at once.
        with self._receiving, self._sending:
            self._connection.close()

    def _fail(self, reason: str) -> ChannelClosed:
        """Make the channel unusable for everybody and return the error to raise.

        The descriptor stays open until `close`, so that a selector that watches it can be told first.
        """
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        return ChannelClosed(reason)

    def _read(self) -> bool:
        """Read what is there; False when nothing is."""
        try:
            data = self._connection.recv(1 << 16)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._fail(f"the connection to {self.peer} is lost: {error.strerror}") from None
        if not data:
            cut = f" in the middle of a message, after {len(self._received)} bytes" if self._received else ""
            raise self._fail(f"{self.peer} has closed the connection{cut}")
        self._received += data
        return True

    def _write(self, deadline: float) -> bool:
        """Write what is unsent until `deadline` (monotonic); True when nothing is left."""
        while self._unsent:
            try:
                sent = self._connection.send(self._unsent)
            except BlockingIOError:
                if not _wait(self._connection, select.POLLOUT, deadline):
                    return False
            except OSError as error:
                raise self._fail(f"the connection to {self.peer} is lost: {error.strerror}") from None
            else:
                del self._unsent[:sent]
        return True


@dataclass(frozen=True)
class _Transcript:
    """What both sides of a connection prove that they agree on."""

    role: str
    epoch: int
    connecting_nonce: str
    listening_nonce: str

    def proof(self, key: bytes, side: str) -> str:
        nonces = (self.connecting_nonce, self.listening_nonce)
        text = json.dumps([side, PROTOCOL, self.role, self.epoch, *nonces])
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()

    def is_proved(self, key: bytes, side: str, proof: object) -> bool:
        # Bytes: compare_digest takes text only when it is ASCII, and a stranger's may be anything.
        return isinstance(proof, str) and hmac.compare_digest(
            self.proof(key, side).encode(), proof.encode(errors="replace")
        )


class _Refusal(Exception):
    """A handshake that ends with a Refused frame."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class _Pending:
    """A connection that has not proved the key yet."""

    connection: socket.socket
    peer: str
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    transcript: _Transcript | None = None

    def reply(self, message: Mapping[str, Any]) -> None:
        """Send a frame of the handshake: the kernel takes that little at once, or the peer behaves badly."""
        frame = encode_frame(message)
        if self.connection.send(frame) != len(frame):
            raise ProtocolError("it does not read")


class Listener:
    """Listens for authenticated channels on a free port of this machine, which peers reach at `host`.

    `key` is the study key and `epoch` the study's epoch: a peer with another one is refused.
    """

    def __init__(self, host: str, key: bytes, epoch: int) -> None:
        """Listen from now on; the kernel chooses the port."""
        self._key = key
        self.epoch = epoch
        """The study's epoch: peers of another one are refused, also those whose handshake has begun."""
        self._socket = socket.create_server((bind_address(host), 0), backlog=128)
        self._socket.setblocking(False)
        self._selector = selectors.EpollSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._pending: dict[socket.socket, _Pending] = {}
        self._is_listening = True
        self.address = f"{host}:{self._socket.getsockname()[1]}"
        """``host:port`` of this listener."""

    def __enter__(self) -> Listener:
        """Return the listener itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the listener."""
        self.close()

    def fileno(self) -> int:
        """A descriptor that is readable when `accept(0)` has something to do."""
        return self._selector.fileno()

    @property
    def deadline(self) -> float | None:
        """When (monotonic) `accept(0)` is due at the latest, to end a handshake that takes too long."""
        return min((pending.deadline for pending in self._pending.values()), default=None)

    def accept(self, timeout: float | None = None) -> Channel | None:
        """Go on with all handshakes; return the first channel that is ready, or None after `timeout` seconds.

        Refused peers are logged and never raise. The channel may hold messages already: `recv(0)` before its
        descriptor is waited for.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            deadlines = [deadline for deadline in (end, self.deadline) if deadline is not None]
            wait = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
            for key, _ in self._selector.select(wait):
                if key.fileobj is self._socket:
                    self._admit()
                elif (channel := self._advance(self._pending[key.fileobj])) is not None:  # type: ignore[index]
                    return channel
            now = time.monotonic()
            for pending in [pending for pending in self._pending.values() if pending.deadline <= now]:
                self._drop(pending, f"it did not prove the study key within {HANDSHAKE_TIMEOUT:g} s")
            if end is not None and now >= end:
                return None

    def close(self) -> None:
        """Stop listening; channels that were accepted stay open."""
        for pending in list(self._pending.values()):
            self._forget(pending)
            pending.connection.close()
        self._selector.close()
        self._socket.close()

    def _admit(self) -> None:
        """Take new connections while there is room for their handshakes."""
        while len(self._pending) < PENDING_LIMIT:
            try:
                connection, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Out of descriptors, say. The connection stays in the backlog; the pause keeps this from
                # spinning.
                logger.warning(f"cannot accept a connection on the control channel: {error.strerror}")
                time.sleep(0.05)
                return
            connection.setblocking(False)
            peer = f"{address[0]}:{address[1]}"
            pending = _Pending(connection, peer, time.monotonic() + HANDSHAKE_TIMEOUT)
            self._pending[connection] = pending
            self._selector.register(connection, selectors.EVENT_READ)
        self._selector.unregister(self._socket)
        self._is_listening = False

    def _advance(self, pending: _Pending) -> Channel | None:
        """Read what a pending peer has sent and answer it; the channel, when that was the last step."""
        try:
            data = pending.connection.recv(HANDSHAKE_FRAME_LIMIT + _LENGTH.size - len(pending.received))
            if not data:
                raise ProtocolError("it closed the connection before it had proved the study key")
            pending.received += data
            while (message := _take_frame(pending.received, HANDSHAKE_FRAME_LIMIT)) is not None:
                if pending.transcript is None:
                    self._challenge(pending, message)
                else:
                    return self._accept(pending, message)
        except BlockingIOError:
            return None
        except _Refusal as refusal:
            with contextlib.suppress(OSError, ProtocolError):
                pending.reply({"kind": "Refused", "code": refusal.code, "message": str(refusal)})
            self._drop(pending, str(refusal))
        except ProtocolError as error:
            self._drop(pending, str(error))
        except OSError as error:
            self._drop(pending, str(error.strerror))
        return None

    def _challenge(self, pending: _Pending, hello: dict[str, Any]) -> None:
        if hello.get("kind") != "Hello":
            raise ProtocolError(f"its first frame is {hello.get('kind')!r:.100}, Hello was expected")
        if hello.get("protocol") != PROTOCOL:
            raise _Refusal(
                "protocol",
                f"it speaks protocol {hello.get('protocol')!r:.20}, this study protocol {PROTOCOL}",
            )
        role, epoch, nonce = (hello.get(name) for name in ("role", "epoch", "nonce"))
        if not (isinstance(role, str) and isinstance(epoch, int) and isinstance(nonce, str)):
            raise ProtocolError("its Hello lacks role, epoch or nonce")
        if len(nonce) != 2 * NONCE_SIZE:
            raise ProtocolError(f"its nonce has {len(nonce)} digits, {2 * NONCE_SIZE} were expected")
        self._check_epoch(epoch)
        pending.transcript = _Transcript(role, epoch, nonce, secrets.token_hex(NONCE_SIZE))
        pending.reply(
            {
                "kind": "Challenge",
                "protocol": PROTOCOL,
                "software": SOFTWARE,
                "nonce": pending.transcript.listening_nonce,
                "proof": pending.transcript.proof(self._key, "listening"),
            }
        )

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            raise _Refusal("epoch", f"it is of start {epoch!r:.20} of the study, this is start {self.epoch}")

    def _accept(self, pending: _Pending, answer: dict[str, Any]) -> Channel:
        transcript = pending.transcript
        assert transcript is not None
        if answer.get("kind") != "Proof":
            raise ProtocolError(f"its second frame is {answer.get('kind')!r:.100}, Proof was expected")
        self._check_epoch(transcript.epoch)
        if not transcript.is_proved(self._key, "connecting", answer.get("proof")):
            raise _Refusal("key", "it does not have this study's key")
        pending.reply({"kind": "Accepted"})
        self._forget(pending)
        return Channel(pending.connection, pending.peer, transcript.role, bytes(pending.received))

    def _forget(self, pending: _Pending) -> None:
        del self._pending[pending.connection]
        self._selector.unregister(pending.connection)
        if not self._is_listening:
            self._selector.register(self._socket, selectors.EVENT_READ)
            self._is_listening = True

    def _drop(self, pending: _Pending, reason: str) -> None:
        self._forget(pending)
        pending.connection.close()
        logger.warning(f"refused a connection of {pending.peer} to the control channel: {reason}")


def connect(address: str, key: bytes, epoch: int, role: str, timeout: float = 30.0) -> Channel:
    """Connect to the listener at `address` (``host:port``) as `role`: "server", say.

    `AuthenticationError` when either side does not have the study's key or is of another epoch,
    `ProtocolError` when the other side is no such listener, `ChannelClosed` when it cannot be reached or
    does not answer within `timeout`.
    """
    deadline = time.monotonic() + timeout
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ProtocolError(f"{address!r} is no address: host:port was expected")
    try:
        connection = socket.create_connection((host, int(port)), timeout)
    except OSError as error:
        raise ChannelClosed(f"cannot connect to {address}: {error.strerror or error}") from None
    channel = Channel(connection, address, role)
    try:
        _prove(channel, key, epoch, role, deadline, timeout)
    except BaseException:
        channel.close()
        raise
    return channel


def _prove(channel: Channel, key: bytes, epoch: int, role: str, deadline: float, timeout: float) -> None:
    """Do the connecting side of the handshake."""

    def answer() -> dict[str, Any]:
        message = channel.recv(max(0.0, deadline - time.monotonic()))
        if message is None:
            raise ChannelClosed(f"{channel.peer} did not answer the handshake within {timeout:g} s")
        if message.get("kind") == "Refused":
            refusal = f"{channel.peer} refused the {role}: {message.get('message')}"
            is_ours = message.get("code") in ("key", "epoch")
            raise AuthenticationError(refusal) if is_ours else ProtocolError(refusal)
        return message

    nonce = secrets.token_hex(NONCE_SIZE)
    hello = {"protocol": PROTOCOL, "software": SOFTWARE, "role": role, "epoch": epoch, "nonce": nonce}
    channel.send({"kind": "Hello"} | hello, timeout)
    challenge = answer()
    other = challenge.get("nonce")
    if challenge.get("kind") != "Challenge" or not isinstance(other, str) or len(other) != 2 * NONCE_SIZE:
        raise ProtocolError(f"{channel.peer} is no control channel of a study: its answer is not a Challenge")
    transcript = _Transcript(role, epoch, nonce, other)
    if not transcript.is_proved(key, "listening", challenge.get("proof")):
        raise AuthenticationError(
            f"{channel.peer} does not have this study's key: another study's launcher may listen there, "
            "or the key file is of another study"
        )
    channel.send({"kind": "Proof", "proof": transcript.proof(key, "connecting")}, timeout)
    if answer().get("kind") != "Accepted":
        raise ProtocolError(f"{channel.peer} is no control channel of a study: it answers without Accepted")
