"""The control channel: framing, the proof of the study key, and what strangers can do to it."""

import contextlib
import hashlib
import hmac
import itertools
import json
import logging
import select
import socket
import struct
import threading
import time
from logging.handlers import BufferingHandler

import pytest

from melissa.exceptions import AuthenticationError, ProtocolError
from melissa.utility import channel as channel_module
from melissa.utility.channel import Channel, ChannelClosed, Listener, connect

KEY = b"k" * 32
EPOCH = 3
SOON = 60.0
"""Seconds within which everything that a test waits for must have come: a loaded machine is slow."""


@pytest.fixture
def listener():
    with Listener("127.0.0.1", KEY, EPOCH) as listener:
        yield listener


class InBackground(threading.Thread):
    """Runs a function in a thread; `result` waits for what it returned or raised."""

    def __init__(self, function, *arguments):
        super().__init__(daemon=True)
        self._call = function, arguments
        self._outcome = None
        self.start()

    def run(self):
        function, arguments = self._call
        try:
            self._outcome = (function(*arguments), None)
        except Exception as error:
            self._outcome = (None, error)

    def result(self, timeout=SOON):
        self.join(timeout)
        assert not self.is_alive(), "it still waits"
        value, error = self._outcome
        if error is not None:
            raise error
        return value


def connected(listener: Listener) -> tuple[Channel, Channel]:
    connecting = InBackground(connect, listener.address, KEY, EPOCH, "server", SOON)
    accepted = listener.accept(SOON)
    assert accepted is not None
    return connecting.result(), accepted


def raw(listener: Listener) -> socket.socket:
    host, port = listener.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), SOON)


def frame(message: object) -> bytes:
    payload = json.dumps(message).encode()
    return struct.pack(">I", len(payload)) + payload


def read_frame(connection: socket.socket) -> dict:
    data = connection.recv(4, socket.MSG_WAITALL)
    return json.loads(connection.recv(struct.unpack(">I", data)[0], socket.MSG_WAITALL))


def hello(**changes) -> dict:
    return {"kind": "Hello", "protocol": 1, "role": "server", "epoch": EPOCH, "nonce": "ab" * 32} | changes


def flood(send) -> None:
    for _ in range(1000):
        send({"filling": "x" * 100_000})


def is_closed_by_listener(listener: Listener, connection: socket.socket) -> bool:
    """Let the listener work until it closes the connection."""
    connection.settimeout(0.02)
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        assert listener.accept(0.02) is None
        with contextlib.suppress(TimeoutError):
            try:
                while connection.recv(4096):
                    pass
                return True
            except ConnectionResetError:
                return True
    return False


def test_messages_arrive_whole_and_in_order_both_ways(listener):
    ours, theirs = connected(listener)
    messages = [{"number": number, "text": "ä" * number, "nan": None} for number in range(200)]
    for message in messages:
        ours.send(message)
    assert [theirs.recv(SOON) for _ in messages] == messages
    theirs.send({"answer": 42})
    assert ours.recv(SOON) == {"answer": 42}
    assert theirs.role == "server"


def test_messages_sent_right_after_the_handshake_are_not_lost(listener):
    def send_at_once():
        channel = connect(listener.address, KEY, EPOCH, "server", SOON)
        channel.send({"first": True})
        return channel

    sender = InBackground(send_at_once)
    accepted = listener.accept(SOON)
    assert accepted.recv(SOON) == {"first": True}
    sender.result()


def test_recv_returns_none_when_nothing_came_in_time(listener):
    ours, theirs = connected(listener)
    assert ours.recv(0) is None
    start = time.monotonic()
    assert theirs.recv(0.1) is None
    assert 0.09 < time.monotonic() - start < SOON


def test_the_descriptor_is_readable_when_a_message_is_there(listener):
    ours, theirs = connected(listener)
    assert select.select([theirs.fileno()], [], [], 0) == ([], [], [])
    ours.send({})
    assert select.select([theirs.fileno()], [], [], SOON)[0]


def test_messages_of_several_threads_stay_whole(listener):
    ours, theirs = connected(listener)
    nb_threads, nb_messages = 8, 50

    def send_many(sender):
        for number in range(nb_messages):
            ours.send({"sender": sender, "number": number, "filling": "x" * (997 * (number % 7))})

    threads = [InBackground(send_many, sender) for sender in range(nb_threads)]
    received = [theirs.recv(SOON) for _ in range(nb_threads * nb_messages)]
    for thread in threads:
        thread.result()
    for sender in range(nb_threads):
        numbers = [message["number"] for message in received if message["sender"] == sender]
        assert numbers == list(range(nb_messages))


def test_a_peer_that_does_not_read_does_not_hold_up_post(listener):
    ours, theirs = connected(listener)
    messages = [{"number": number, "filling": "x" * 50_000} for number in range(200)]
    for message in messages:
        ours.post(message)
    assert ours.unsent > 0
    received = []
    while len(received) < len(messages):
        ours.flush()
        if (message := theirs.recv(0.01)) is not None:
            received.append(message)
    assert received == messages
    assert ours.unsent == 0


def test_send_gives_up_on_a_peer_that_does_not_read(listener):
    ours, _theirs = connected(listener)
    with pytest.raises(ChannelClosed, match=r"has not read its messages for 0\.2 s"):
        flood(lambda message: ours.send(message, timeout=0.2))


def test_post_gives_up_on_a_peer_that_leaves_too_much_unread(listener, monkeypatch):
    monkeypatch.setattr(channel_module, "FRAME_LIMIT", 1 << 20)
    ours, _theirs = connected(listener)
    with pytest.raises(ChannelClosed, match="unread"):
        flood(ours.post)


def test_the_end_of_the_peer_is_told_at_once(listener):
    ours, theirs = connected(listener)
    waiting = InBackground(ours.recv, None)
    time.sleep(0.05)
    theirs.close()
    with pytest.raises(ChannelClosed, match="has closed the connection"):
        waiting.result()
    with pytest.raises(ChannelClosed):
        flood(ours.send)


def test_close_wakes_a_thread_that_waits_in_recv(listener):
    ours, _theirs = connected(listener)
    waiting = InBackground(ours.recv, None)
    time.sleep(0.05)
    ours.close()
    with pytest.raises(ChannelClosed):
        waiting.result()
    with pytest.raises(ChannelClosed):
        ours.recv(0)
    with pytest.raises(ChannelClosed):
        ours.send({})


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (struct.pack(">I", 1000) + b"{", "in the middle of a message, after 5 bytes"),
        (struct.pack(">I", 0xFFFFFFFF), "4294967295 bytes was announced"),
        (struct.pack(">I", 4) + b"\xff\xfe\xfd\xfc", "not JSON"),
        (frame([1, 2]), "holds list, an object was expected"),
        (struct.pack(">I", 100_000) + b"[" * 100_000, "not JSON"),
    ],
    ids=["truncated", "oversized", "no JSON", "no object", "nested without end"],
)
def test_a_peer_that_breaks_the_framing_is_cut_off(data, complaint):
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        channel = Channel(server.accept()[0], "peer", "server")
    theirs.sendall(data)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(ChannelClosed, match=complaint):
        channel.recv(SOON)
    with pytest.raises(ChannelClosed):
        channel.send({})
    channel.close()
    theirs.close()


def test_a_message_that_is_too_long_is_not_sent(listener, monkeypatch):
    ours, theirs = connected(listener)
    monkeypatch.setattr(channel_module, "FRAME_LIMIT", 1000)
    with pytest.raises(ValueError, match="1000 bytes are the limit"):
        ours.send({"filling": "x" * 1000})
    ours.send({"still": "good"})
    assert theirs.recv(SOON) == {"still": "good"}


def test_a_connecting_peer_without_the_key_is_told_so(listener):
    connecting = InBackground(connect, listener.address, b"z" * 32, EPOCH, "server", SOON)
    assert listener.accept(0.3) is None
    with pytest.raises(AuthenticationError, match="does not have this study's key"):
        connecting.result()


def test_a_listener_refuses_a_wrong_proof(listener, monkeypatch):
    log = BufferingHandler(capacity=100)
    monkeypatch.setattr(logging.getLogger("melissa"), "handlers", [log])
    with raw(listener) as connection:
        connection.sendall(frame(hello()))
        assert listener.accept(0.2) is None
        challenge = read_frame(connection)
        text = json.dumps(["connecting", 1, "server", EPOCH, "ab" * 32, challenge["nonce"]])
        proof = hmac.new(b"z" * 32, text.encode(), hashlib.sha256).hexdigest()
        connection.sendall(frame({"kind": "Proof", "proof": proof}))
        assert listener.accept(0.2) is None
        answer = read_frame(connection)
    assert (answer["kind"], answer["code"]) == ("Refused", "key")
    assert "does not have this study's key" in log.buffer[0].getMessage()


def test_the_listeners_own_proof_does_not_serve_as_the_other_sides(listener):
    with raw(listener) as connection:
        connection.sendall(frame(hello()))
        assert listener.accept(0.2) is None
        challenge = read_frame(connection)
        connection.sendall(frame({"kind": "Proof", "proof": challenge["proof"]}))
        assert listener.accept(0.2) is None
        assert read_frame(connection)["kind"] == "Refused"


def test_a_peer_of_another_epoch_is_refused(listener):
    connecting = InBackground(connect, listener.address, KEY, EPOCH - 1, "server", SOON)
    assert listener.accept(0.3) is None
    with pytest.raises(AuthenticationError, match="start 2 of the study, this is start 3"):
        connecting.result()


def test_a_peer_of_another_protocol_is_refused(listener):
    with raw(listener) as connection:
        connection.sendall(frame(hello(protocol=7)))
        assert listener.accept(0.2) is None
        answer = read_frame(connection)
    assert answer["code"] == "protocol"
    assert "7" in answer["message"]


@pytest.mark.parametrize(
    "data",
    [
        bytes(range(255, 0, -1)) * 20,
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        struct.pack(">I", 5000),
        frame(["no object"]),
        frame({"kind": "Proof", "proof": "00"}),
        frame(hello(nonce="ab")),
        frame(hello(role=None)),
        frame({"kind": "\ud800" * 20}),
        frame(hello()) + frame({"kind": "Proof", "proof": "\ud800"}),
        frame(hello()) + frame({"kind": "Proof", "proof": ["ab"]}),
        frame(hello()) + frame({"kind": "Proof"}),
        b"",
    ],
    ids=itertools.count(),
)
def test_strangers_are_cut_off_and_harm_nobody(listener, data):
    ours, theirs = connected(listener)
    with raw(listener) as stranger:
        stranger.sendall(data)
        stranger.shutdown(socket.SHUT_WR)
        assert is_closed_by_listener(listener, stranger)
    ours.send({"still": "well"})
    assert theirs.recv(SOON) == {"still": "well"}
    connected(listener)


def test_a_peer_that_sends_byte_by_byte_is_cut_off_in_time_and_holds_up_nobody(listener, monkeypatch):
    monkeypatch.setattr(channel_module, "HANDSHAKE_TIMEOUT", 2.0)
    data = frame(hello())
    with raw(listener) as slow:
        stop = threading.Event()

        def drip():
            for byte in data:
                with contextlib.suppress(OSError):
                    slow.sendall(bytes([byte]))
                if stop.wait(0.05):
                    return

        dripping = InBackground(drip)
        listener.accept(0.1)
        connected(listener)
        assert is_closed_by_listener(listener, slow)
        stop.set()
        dripping.result()


def test_strangers_that_hold_connections_delay_others_for_the_time_of_a_handshake_at_most(
    listener, monkeypatch
):
    monkeypatch.setattr(channel_module, "HANDSHAKE_TIMEOUT", 2.0)
    monkeypatch.setattr(channel_module, "PENDING_LIMIT", 4)
    strangers = [raw(listener) for _ in range(6)]
    try:
        listener.accept(0.05)
        assert len(listener._pending) == 4
        connecting = InBackground(connect, listener.address, KEY, EPOCH, "server", SOON)
        assert listener.accept(SOON) is not None
        connecting.result()
    finally:
        for stranger in strangers:
            stranger.close()


def test_a_listener_that_has_not_the_key_is_found_out():
    with Listener("127.0.0.1", b"z" * 32, EPOCH) as impostor:
        connecting = InBackground(connect, impostor.address, KEY, EPOCH, "server", SOON)
        assert impostor.accept(2.0) is None
        with pytest.raises(AuthenticationError, match="does not have this study's key"):
            connecting.result()


def test_connect_says_what_is_wrong_with_what_listens_there():
    def answer_like_http(server):
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        answering = InBackground(answer_like_http, server)
        with pytest.raises((ProtocolError, ChannelClosed), match=address):
            connect(address, KEY, EPOCH, "server", SOON)
        answering.result()


def test_connect_does_not_wait_for_ever():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ChannelClosed, match=r"did not answer the handshake within 0\.2 s"):
            connect(address, KEY, EPOCH, "server", 0.2)
    with pytest.raises(ChannelClosed, match="cannot connect"):
        connect(address, KEY, EPOCH, "server", 0.2)
    with pytest.raises(ProtocolError, match="host:port was expected"):
        connect("nowhere", KEY, EPOCH, "server", 0.2)
