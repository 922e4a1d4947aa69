"""Addresses: what reaches this machine alone, and what a whole cluster reaches."""

import socket

import pytest

from melissa.utility.addresses import LOOPBACK, bind_address, host_name, is_loopback, own_host
from melissa.utility.channel import Listener


@pytest.mark.parametrize(
    ("host", "is_here"),
    [("127.0.0.1", True), ("localhost", True), ("[::1]", True), ("10.0.0.1", False), ("node17", False)],
)
def test_loopback_addresses_are_known(host, is_here):
    assert is_loopback(host) is is_here


def test_processes_are_reached_as_their_launcher_is():
    assert own_host("127.0.0.1:4711") == LOOPBACK
    assert own_host("login1.cluster:4711") == host_name() == socket.gethostname()


def test_a_name_is_listened_for_on_every_interface():
    assert bind_address("127.0.0.1") == "127.0.0.1"
    assert bind_address("node17") == "0.0.0.0"


def test_a_listener_under_another_name_is_reached_on_every_interface():
    with Listener("node17", b"k" * 32, 1) as listener:
        host, _, port = listener.address.rpartition(":")
        assert host == "node17"
        with socket.create_connection(("127.0.0.1", int(port)), timeout=5.0):
            listener.accept(0.1)
