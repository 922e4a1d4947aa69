"""How the ranks of a server come together when their processes start."""

from __future__ import annotations

import os
import socket

from melissa.exceptions import RankLostError
from melissa.server.communicator import Communicator, make_communicator, number_of_ranks, process_rank
from melissa.server.environment import StudyEnvironment
from melissa.server.link import Link
from melissa.server.ranks.agent import RankAgent
from melissa.server.ranks.hub import RankHub
from melissa.server.ranks.message import Joined
from melissa.server.roll_call import IN_MPI, STARTED, RankWait, RollCall
from melissa.utility.channel import ChannelClosed, Listener, connect
from melissa.utility.life import Life

__all__ = ["Ranks", "forget_ranks", "join_ranks", "server_ranks"]

Ranks = RankHub | RankAgent

_ranks: Ranks | None = None


def join_ranks(comm: Communicator, environment: StudyEnvironment, link: Link | None) -> Ranks | None:
    """Connect every rank to rank 0; None where there is one rank only.

    The address of rank 0's listener goes over MPI, all that follows over channels that the study key
    protects. `RankLostError` names the ranks that do not come.
    """
    if comm.size == 1:
        return None
    key, epoch = environment.key, environment.study_epoch
    if comm.rank == 0:
        with Listener(environment.own_host, key, epoch) as listener:
            comm.bcast(listener.address)
            hub = RankHub(listener, comm.size, link)
            hub.wait_for_ranks()
        return hub
    address = comm.bcast(None)
    joined = Joined(comm.rank, os.getpid(), socket.gethostname()).to_dict()
    try:
        # This one first: rank 0 has all of them when the last rank has joined.
        life = connect(address, key, epoch, "rank-life")
        life.send(joined)
        channel = connect(address, key, epoch, "rank")
        channel.send(joined)
    except ChannelClosed as closed:
        raise RankLostError(f"server rank {comm.rank} cannot join rank 0: {closed}") from None
    agent = RankAgent(channel, comm.rank, Life(life))
    agent.start()
    return agent


def server_ranks(link: Link | None = None) -> Ranks | None:
    """Return this process's part among the server's ranks, made at the first call.

    None for one rank, and where no launcher has started the process.

    `link` is rank 0's to the launcher.
    """
    global _ranks
    nb_ranks = number_of_ranks()
    if _ranks is None and nb_ranks > 1 and StudyEnvironment.is_given():
        environment = StudyEnvironment.read()
        started, in_mpi = (RollCall(environment, nb_ranks, stage) for stage in (STARTED, IN_MPI))
        in_mpi.answer(rank := process_rank())
        rank_wait = RankWait(in_mpi.missing, "the ranks meet before the study's file is imported", rank)
        _ranks = join_ranks(make_communicator(check=rank_wait.check), environment, link)
        if rank == 0:
            started.close()
            in_mpi.close()
    return _ranks


def forget_ranks() -> None:
    """Let the next call of `server_ranks` join again."""
    global _ranks
    _ranks = None
