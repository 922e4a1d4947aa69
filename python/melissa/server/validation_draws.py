"""Parameters of the simulations that are run for validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from melissa.server.control import Draw
from melissa.server.parameters import BaseExperiment

__all__ = ["ValidationDraws"]


class ValidationDraws:
    """Gives each simulation for validation parameters of its own, which no training simulation has.

    Of a design of this package, or a class derived from one, they are further points of it, drawn after
    those of the training simulations, which stay what they are without validation. A class with a `draw` of
    its own, and a `draw_parameters`, is asked before the first training simulation is.

    Parameters
    ----------
    sampler
        That of the study; None where `draw` is the study's own `draw_parameters`.
    draw
        Draws for one further simulation.
    nb_simulations
        Simulations for validation.
    """

    def __init__(self, sampler: Any, draw: Callable[[], Draw], nb_simulations: int) -> None:
        self._sampler: Any = sampler if continues_design(sampler) else None
        self._draw = draw
        if self._sampler is None:
            self._prepared = [draw() for _ in range(nb_simulations)]
        else:
            self._prepared = [self._processed(row) for row in sampler.sample_further(nb_simulations)]
        self._prepared.reverse()

    def __call__(self) -> Draw:
        """Draw for the next simulation; beyond the last one, for one that is given fresh parameters."""
        if self._prepared:
            return self._prepared.pop()
        if self._sampler is None:
            return self._draw()
        return self._processed(self._sampler.sample_further(1)[0])

    def _processed(self, row: Any) -> Draw:
        return Draw(row, self._sampler.process_drawn(row))


def continues_design(sampler: Any) -> bool:
    """Say whether a sampler can give points beside those that its `draw` will give."""
    return isinstance(sampler, BaseExperiment) and type(sampler).draw is BaseExperiment.draw
