"""Where each rank trains: which GPU, or the CPU, and how many cores it shares with whom."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

from melissa.server.communicator import Communicator

__all__ = ["Place", "RankHardware", "choose_places", "find_place"]

logger = logging.getLogger("melissa")


@dataclass(frozen=True)
class RankHardware:
    """What one rank sees: its node, the GPUs visible to it (an identity of each), the cores it may use."""

    node: str
    gpus: tuple[str, ...]
    cores: frozenset[int]

    @classmethod
    def look(cls) -> RankHardware:
        """Look at this process's hardware."""
        import torch

        gpus: tuple[str, ...] = ()
        if torch.cuda.is_available():
            # Where Slurm binds one GPU to each task, all of them are number 0 to their tasks: only this shows
            # that they differ.
            count = torch.cuda.device_count()
            gpus = tuple(str(torch.cuda.get_device_properties(index).uuid) for index in range(count))
        return cls(platform.node(), gpus, frozenset(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class Place:
    """Where one rank trains.

    `gpu` is the number of its GPU, None on the CPU. `local_rank` counts the ranks of its node. `is_one_node`
    says whether all ranks are on this node, `nb_sharing` how many ranks use the same cores.
    """

    gpu: int | None
    local_rank: int
    is_one_node: bool
    nb_sharing: int


def choose_places(hardware: Sequence[RankHardware]) -> tuple[list[Place], str]:
    """Choose a place for each rank, and say in words why.

    GPUs are used when every rank has one of its own: as many are visible on a node as it has ranks, or one is
    bound to each rank. Otherwise all ranks train on the CPU, for gradients travel between equal devices.
    """
    nodes: dict[str, list[int]] = {}
    for rank, seen in enumerate(hardware):
        nodes.setdefault(seen.node, []).append(rank)
    gpus: dict[int, int] = {}
    problem = ""
    for node, ranks in nodes.items():
        visible = [hardware[rank].gpus for rank in ranks]
        if all(len(seen) >= len(ranks) and seen == visible[0] for seen in visible):
            gpus |= {rank: index for index, rank in enumerate(ranks)}
        elif all(len(seen) == 1 for seen in visible) and len(set(visible)) == len(ranks):
            gpus |= dict.fromkeys(ranks, 0)
        elif not problem:
            together = len({gpu for seen in visible for gpu in seen})
            problem = f"on {node} {len(ranks)} server rank(s) see {together} GPU(s)"
    places = [
        Place(
            None if problem else gpus[rank],
            nodes[seen.node].index(rank),
            len(nodes) == 1,
            sum(hardware[other].cores == seen.cores for other in nodes[seen.node]),
        )
        for rank, seen in enumerate(hardware)
    ]
    return places, problem or "each server rank has a GPU of its own"


def find_place(comm: Communicator) -> Place:
    """Find this rank's place; every rank calls it."""
    hardware = comm.allgather(RankHardware.look())
    places, reason = choose_places(hardware)
    place = places[comm.rank]
    if place.gpu is None and any(seen.gpus for seen in hardware):
        logger.warning(f"training runs on the CPU although there are GPUs: {reason}; each rank needs its own")
    return place
