"""The parameters of every simulation as they were drawn."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from typing import Any

from melissa.exceptions import ConfigurationFileError

__all__ = ["ParameterRegistry", "numeric_parameters", "plain_list"]


def plain_list(drawn: Iterable[Any]) -> list[Any]:
    """Return what was drawn as a list of plain Python values, no NumPy scalars."""
    return [
        value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
        for value in drawn
    ]


def numeric_parameters(drawn: Sequence[Any], nb_parameters: int) -> list[float]:
    """Return the numbers of `drawn` that travel beside a sample: the last ones, NaN for what is no number.

    Tokens that a study puts before its parameters (an option's name, say) are left out so.
    `ConfigurationFileError` when there are fewer.
    """
    if len(drawn) < nb_parameters:
        raise ConfigurationFileError(
            f"{len(drawn)} parameters were drawn for a simulation ({drawn!r:.200}), but "
            f"study_options.nb_parameters is {nb_parameters}: draw as many, or correct that number"
        )
    last = drawn[len(drawn) - nb_parameters :]
    return [float(value) if isinstance(value, numbers.Real) else float("nan") for value in last]


class ParameterRegistry:
    """What was drawn for each (simulation, draw): the control thread writes, the training thread reads."""

    def __init__(self) -> None:
        self._drawn: dict[tuple[int, int], list[Any]] = {}

    def record(self, simulation_id: int, draw: int, drawn: list[Any]) -> None:
        """Keep the parameters of a draw; they stay as long as the study, since its samples may."""
        self._drawn[simulation_id, draw] = drawn

    def parameters(self, simulation_id: int, draw: int) -> list[Any] | None:
        """Return a list of its own with what was drawn, None where nothing is known of that draw."""
        drawn = self._drawn.get((simulation_id, draw))
        return None if drawn is None else drawn.copy()
