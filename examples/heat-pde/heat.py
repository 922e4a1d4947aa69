"""Heat conduction in a square plate: the solver of the example.

    python heat.py INITIAL LEFT RIGHT BOTTOM TOP        (five temperatures in kelvin)

A copper plate of 10 cm x 10 cm has one temperature everywhere. At t = 0 each of its four sides is put to a
temperature of its own and kept there; for 20 seconds the plate follows:

    du/dt = a (d2u/dx2 + d2u/dy2),       a = 1.11e-4 m2/s

Every 0.2 s the field is sent to the surrogate's training, as one of 100 time steps. `solve` is the solver
alone; only `main` knows Melissa, and with three calls.
"""

import math
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.sparse.linalg import splu

FIELD_NAME = "temperature"
PARAMETER_NAMES = ("initial", "left", "right", "bottom", "top")
COLDEST, HOTTEST = 100.0, 500.0  # K, what the study covers

SIDE = 0.1  # m
DIFFUSIVITY = 1.11e-4  # m2/s, copper
NB_CELLS = 100  # along each side
NB_TIME_STEPS = 100  # that are sent
TIME_STEP = 0.2  # s; heat crosses the plate in SIDE**2 / (pi**2 DIFFUSIVITY), some 9 s

# Implicit steps per time step that is sent. The front at a wall is steep when it starts, so the hardest
# case is the first time step of a plate at 100 K between walls at 500 K. Root mean square errors there, in K:
#
#     of the steps in time (against the exact solution of the same mesh)      1: 17    5: 0.18    10: 0.04
#     of the mesh of 100 x 100 cells (against 400 x 400)                      0.28
#
# With 10 the error in time is a sixth of the mesh's there, and less ever after. (Of backward Euler steps,
# which are of first order, it would take some 600.)
SUBSTEPS = 10


def conduction_matrix(nb_cells: int) -> sparse.csc_array:
    """Return the operator a (d2/dx2 + d2/dy2) on the cells of the plate, row by row; in 1/s.

    Finite volumes: what leaves a cell enters its neighbour, so no heat is lost. A wall is half a cell away
    from the centre of the cell beside it, and conducts twice as well: hence the -3 for -2.
    """
    diagonal = np.full(nb_cells, -2.0)
    diagonal[[0, -1]] = -3.0
    beside = np.ones(nb_cells - 1)
    along = sparse.diags_array([beside, diagonal, beside], offsets=[-1, 0, 1]) * (nb_cells / SIDE) ** 2
    identity = sparse.eye_array(nb_cells)
    return DIFFUSIVITY * (sparse.kron(identity, along) + sparse.kron(along, identity)).tocsc()


def wall_heating(nb_cells: int, left: float, right: float, bottom: float, top: float) -> NDArray[np.float64]:
    """Return what the walls add to du/dt of each cell, in K/s: the other end of those -3."""
    walls = np.zeros((nb_cells, nb_cells))  # rows: y, upwards; columns: x, to the right
    walls[:, 0] += left
    walls[:, -1] += right
    walls[0, :] += bottom
    walls[-1, :] += top
    return 2.0 * DIFFUSIVITY * (nb_cells / SIDE) ** 2 * walls.ravel()


def solve(
    parameters: Sequence[float],
    *,
    nb_cells: int = NB_CELLS,
    nb_time_steps: int = NB_TIME_STEPS,
    substeps: int = SUBSTEPS,
) -> Iterator[NDArray[np.float64]]:
    """Yield the temperature in the plate, in K, at 0.2 s, 0.4 s and so on.

    `parameters` are the five temperatures in K, in the order of `PARAMETER_NAMES`. Each field has the shape
    (nb_cells, nb_cells): rows go up from the bottom, columns from left to right.
    """
    initial, left, right, bottom, top = parameters
    conduction = conduction_matrix(nb_cells)
    heating = wall_heating(nb_cells, left, right, bottom, top)

    # Two implicit stages of one matrix (Alexander's SDIRK2, 1977): second order, so few steps are needed,
    # and L-stable, so the jump between plate and wall at the start dies out without ringing, as in nature.
    # Matrix and step never change: it is factorised once, and a stage is two triangular solves.
    dt = TIME_STEP / substeps
    gamma = 1.0 - math.sqrt(0.5)
    implicit = sparse.eye_array(nb_cells**2) - gamma * dt * conduction
    factors = splu(implicit.tocsc(), permc_spec="MMD_AT_PLUS_A")  # this ordering suits a symmetric pattern

    field = np.full(nb_cells**2, float(initial))
    for _ in range(nb_time_steps):
        for _ in range(substeps):
            first = factors.solve(conduction @ field + heating)
            second = factors.solve(conduction @ (field + (1.0 - gamma) * dt * first) + heating)
            field = field + dt * ((1.0 - gamma) * first + gamma * second)
        yield field.reshape(nb_cells, nb_cells)


def main(arguments: Sequence[str]) -> None:
    """Simulate one plate, and send every time step to the study that started this process."""
    expected = f"expected five temperatures in kelvin: {' '.join(PARAMETER_NAMES)}"
    try:
        parameters = [float(argument) for argument in arguments]
    except ValueError as error:
        sys.exit(f"heat.py: {error}; {expected}")
    if len(parameters) != len(PARAMETER_NAMES) or not all(0 < value < math.inf for value in parameters):
        sys.exit(f"heat.py: got {parameters}; {expected}")

    from melissa_api import melissa_finalize, melissa_init, melissa_send

    melissa_init(FIELD_NAME, NB_CELLS * NB_CELLS)
    for field in solve(parameters):
        melissa_send(FIELD_NAME, field.ravel())
    melissa_finalize()


if __name__ == "__main__":
    main(sys.argv[1:])
