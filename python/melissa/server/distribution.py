"""Which server rank gets which time step."""

from __future__ import annotations

__all__ = ["steps_of_rank"]


def _count(total: int, residue: int, modulus: int) -> int:
    """Return how many of 0 .. total - 1 leave `residue` when divided by `modulus`."""
    return len(range(residue, total, modulus))


def steps_of_rank(
    rank: int, *, nb_ranks: int, nb_simulations: int, nb_time_steps: int, distribution: str = "round_robin"
) -> int:
    """Return how many time steps of the whole study come to a server rank.

    By "round_robin" time step t of simulation s goes to rank (t + s) mod `nb_ranks`, by "simulation" to rank
    s mod `nb_ranks`. (The rule itself is the client's and the session's: ``docs/protocol.md``.)
    """
    if distribution == "simulation":
        return _count(nb_simulations, rank, nb_ranks) * nb_time_steps
    return sum(
        _count(nb_simulations, residue, nb_ranks)
        * _count(nb_time_steps, (rank - residue) % nb_ranks, nb_ranks)
        for residue in range(nb_ranks)
    )
