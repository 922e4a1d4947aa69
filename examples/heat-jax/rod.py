"""Heat conduction in a rod: the solver of the example.

    python rod.py INITIAL LEFT RIGHT        (three temperatures in kelvin)

A copper rod of 20 cm has one temperature everywhere. At t = 0 its ends are put to temperatures of their own
and kept there; for 50 seconds the rod follows du/dt = a d2u/dx2. Every second the field is sent to the
surrogate's training, as one of 50 time steps. `solve` is the solver alone; only `main` knows Melissa, and
with three calls.
"""

import math
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

FIELD_NAME = "temperature"
PARAMETER_NAMES = ("initial", "left", "right")
COLDEST, HOTTEST = 100.0, 500.0  # K, what the study covers

LENGTH = 0.2  # m
DIFFUSIVITY = 1.11e-4  # m2/s, copper
NB_CELLS = 100
NB_TIME_STEPS = 50  # that are sent
TIME_STEP = 1.0  # s
SUBSTEPS = 20  # implicit steps per time step that is sent


def solve(parameters: Sequence[float]) -> Iterator[NDArray[np.float64]]:
    """Yield the temperature of each cell, in K, at 1 s, 2 s and so on; the parameters are three in K."""
    initial, left, right = parameters
    # Finite volumes: what leaves a cell enters its neighbour. An end is half a cell away from the centre of
    # the cell beside it, and conducts twice as well: hence 3 in the place of 2.
    rate = DIFFUSIVITY * (NB_CELLS / LENGTH) ** 2 * TIME_STEP / SUBSTEPS
    beside = np.full(NB_CELLS - 1, -rate)
    here = np.full(NB_CELLS, 1.0 + 2.0 * rate)
    here[[0, -1]] += rate
    # The matrix of an implicit step never changes, so it is inverted once.
    step = np.linalg.inv(np.diag(here) + np.diag(beside, 1) + np.diag(beside, -1))
    ends = np.zeros(NB_CELLS)
    ends[0], ends[-1] = 2.0 * rate * left, 2.0 * rate * right

    field = np.full(NB_CELLS, float(initial))
    for _ in range(NB_TIME_STEPS):
        for _ in range(SUBSTEPS):
            field = step @ (field + ends)
        yield field


def main(arguments: Sequence[str]) -> None:
    """Simulate one rod, and send every time step to the study that started this process."""
    try:
        parameters = [float(argument) for argument in arguments]
    except ValueError as error:
        sys.exit(f"rod.py: {error}; expected three temperatures in kelvin: {' '.join(PARAMETER_NAMES)}")
    if len(parameters) != len(PARAMETER_NAMES) or not all(0 < value < math.inf for value in parameters):
        sys.exit(f"rod.py: got {parameters}; expected three temperatures in kelvin")

    from melissa_api import melissa_finalize, melissa_init, melissa_send

    melissa_init(FIELD_NAME, NB_CELLS)
    for field in solve(parameters):
        melissa_send(FIELD_NAME, field)
    melissa_finalize()


if __name__ == "__main__":
    main(sys.argv[1:])
