"""The process group of data-parallel training with torch: how ranks meet, and how they part."""

from __future__ import annotations

import logging
import os
import platform
import socket
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from melissa.exceptions import TrainingError
from melissa.server.communicator import Communicator
from melissa.server.deep_learning.torch_places import Place

if TYPE_CHECKING:
    import torch

__all__ = ["close_group", "group_exists", "open_group", "says_peer_lost"]

logger = logging.getLogger("melissa")

MEETING_TIMEOUT = timedelta(seconds=120)
# A rank may wait for another as long as a batch system takes to start the next solver. That a rank has died
# shows by its closed connections, not by a timeout.
COLLECTIVE_TIMEOUT = timedelta(days=7)
BACKLOG = 1024  # ranks that connect at once


def group_exists() -> bool:
    """Say whether this process is in a process group, ours or one that the study's class has made."""
    import torch.distributed as dist

    return bool(dist.is_available() and dist.is_initialized())


def open_group(
    comm: Communicator, place: Place, device: torch.device, master: tuple[str, int] | None = None
) -> str:
    """Make the process group of all ranks; return its backend, nccl for GPUs, else gloo.

    Rank 0 waits for the others at `master`, (host, port), or at a free port of its node. ``MASTER_ADDR`` and
    ``MASTER_PORT`` say where it is, and ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` are set as torchrun sets
    them. `TrainingError` on every rank when rank 0 cannot listen there.
    """
    import torch
    import torch.distributed as dist

    if place.is_one_node:
        # Otherwise gloo looks up the name of the node, which laptops and containers cannot always resolve.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = _meet(comm, place, master)
    is_on_gpu = device.type == "cuda"
    backend = "nccl" if is_on_gpu else "gloo"
    options: dict[str, Any] = {}
    if is_on_gpu:
        torch.cuda.set_device(device)
        options["device_id"] = device
    dist.init_process_group(
        backend,
        store=store,
        rank=comm.rank,
        world_size=comm.size,
        timeout=COLLECTIVE_TIMEOUT,
        **options,
    )
    os.environ.update(RANK=str(comm.rank), WORLD_SIZE=str(comm.size), LOCAL_RANK=str(place.local_rank))
    return backend


def _meet(comm: Communicator, place: Place, master: tuple[str, int] | None) -> Any:
    """Return the store through which the ranks find each other."""
    import torch.distributed as dist

    listener: socket.socket | None = None
    answer: tuple[str, int] | str | None = None
    if comm.rank == 0:
        try:
            listener = _listen(place, master)
            host = "127.0.0.1" if place.is_one_node else platform.node()
            answer = (master[0] if master else host, listener.getsockname()[1])
        except OSError as error:
            where = f"{master[0]}:{master[1]}" if master else "a free port"
            answer = (
                f"server rank 0 cannot wait for the other ranks at {where} ({error}); set MASTER_PORT in the "
                "environment of the server to a free port"
            )
    answer = comm.bcast(answer)
    if not isinstance(answer, tuple):
        raise TrainingError(answer)
    host, port = answer
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
    options: dict[str, Any] = {}
    if listener is not None:
        # The store takes the socket over: no port is given back and asked for again.
        options = {"master_listen_fd": listener.detach(), "use_libuv": False}
    return dist.TCPStore(
        host,
        port,
        world_size=comm.size,
        is_master=comm.rank == 0,
        timeout=MEETING_TIMEOUT,
        wait_for_workers=False,
        **options,
    )


def _listen(place: Place, master: tuple[str, int] | None) -> socket.socket:
    """Listen for the other ranks, on the loopback device alone when they are all here."""
    if master is None and place.is_one_node:
        return socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    both = socket.has_dualstack_ipv6()
    return socket.create_server(
        ("", master[1] if master else 0),
        family=socket.AF_INET6 if both else socket.AF_INET,
        backlog=BACKLOG,
        dualstack_ipv6=both,
    )


def close_group() -> None:
    """Leave the process group in order.

    After a failure the end of the process does it: nothing less closes the connections of gloo, by which the
    other ranks notice.
    """
    import torch.distributed as dist

    dist.destroy_process_group()


def says_peer_lost(error: RuntimeError) -> bool:
    """Say whether `error`, raised by a collective, is about a rank that is gone."""
    phrases = ("onnection closed by peer", "onnection reset by peer", "Broken pipe")
    return any(phrase in str(error) for phrase in phrases)
