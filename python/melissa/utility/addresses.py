"""Host names and addresses that the processes of a study reach each other at."""

from __future__ import annotations

import ipaddress
import socket

__all__ = ["LOOPBACK", "bind_address", "host_name", "is_loopback", "own_host"]

LOOPBACK = "127.0.0.1"


def host_name() -> str:
    """Return the name of this machine, as the others of a cluster know it."""
    return socket.gethostname()


def is_loopback(host: str) -> bool:
    """Say whether `host` reaches this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bind_address(host: str) -> str:
    """Return what to listen at for peers that come to `host`: that address, or every interface of a name."""
    return host if is_loopback(host) else "0.0.0.0"


def own_host(peer: str) -> str:
    """Return where processes reach this one that reach `peer` (``host:port``, the launcher's say).

    When that is on the loopback interface, so is all of the study; else this machine's name.
    """
    return LOOPBACK if is_loopback(peer.rpartition(":")[0]) else host_name()
