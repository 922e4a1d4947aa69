"""The heat equation's solver against what is known of heat."""

import os
import subprocess
import sys
from pathlib import Path

import heat
import numpy as np
import pytest
from numpy.typing import NDArray

WALLS = (150.0, 420.0, 260.0, 310.0)  # left, right, bottom, top


def simulate(*parameters: float, **options: int) -> NDArray[np.float64]:
    return np.array(list(heat.solve(parameters, **options)))


def rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))


def equal_walls(initial: float, walls: float, nb_cells: int, time: float) -> NDArray[np.float64]:
    """The analytical solution as a series: a product of the same function of x and of y."""
    x = (np.arange(nb_cells) + 0.5) / nb_cells
    n = np.arange(1, 400, 2)[:, None]
    decay = np.exp(-((n * np.pi / heat.SIDE) ** 2) * heat.DIFFUSIVITY * time)
    along = (4.0 / (n * np.pi) * np.sin(n * np.pi * x) * decay).sum(axis=0)
    return walls + (initial - walls) * np.outer(along, along)


def test_a_plate_between_equal_walls_follows_the_analytical_solution() -> None:
    fields = simulate(100.0, 500.0, 500.0, 500.0, 500.0)
    for step, tolerance in (
        (0, 0.35),
        (9, 0.06),
        (99, 0.01),
    ):  # K: the mesh's error, of a jump of 400 K
        exact = equal_walls(100.0, 500.0, heat.NB_CELLS, (step + 1) * heat.TIME_STEP)
        assert rms(fields[step] - exact) < tolerance


def test_the_error_of_the_mesh_falls_by_four_when_the_cells_are_halved() -> None:
    errors = []
    for nb_cells in (10, 20, 40):
        field = simulate(100.0, 500.0, 500.0, 500.0, 500.0, nb_cells=nb_cells, nb_time_steps=20)[-1]
        errors.append(rms(field - equal_walls(100.0, 500.0, nb_cells, 20 * heat.TIME_STEP)))
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.1)


def test_the_error_in_time_falls_by_four_when_the_steps_are_halved() -> None:
    coarse, middle, fine, reference = (
        simulate(100.0, *WALLS, nb_cells=20, nb_time_steps=20, substeps=substeps)[-1]
        for substeps in (1, 2, 4, 64)
    )
    assert rms(coarse - reference) / rms(middle - reference) == pytest.approx(4.0, rel=0.15)
    assert rms(middle - reference) / rms(fine - reference) == pytest.approx(4.0, rel=0.15)


def test_the_substeps_keep_the_error_in_time_where_the_comment_says() -> None:
    hardest = (100.0, 500.0, 500.0, 500.0, 500.0)
    (reference,) = simulate(*hardest, nb_time_steps=1, substeps=100)
    for substeps, error in ((1, 17.2), (5, 0.181), (heat.SUBSTEPS, 0.044)):
        (field,) = simulate(*hardest, nb_time_steps=1, substeps=substeps)
        assert rms(field - reference) == pytest.approx(error, rel=0.03)


def test_a_plate_as_warm_as_its_walls_stays_so() -> None:
    fields = simulate(333.0, 333.0, 333.0, 333.0, 333.0, nb_cells=20)
    np.testing.assert_allclose(fields, 333.0, rtol=1e-12)


def test_heat_that_leaves_a_cell_enters_its_neighbours() -> None:
    nb_cells = 7
    gained = np.asarray(heat.conduction_matrix(nb_cells).sum(axis=0)).reshape(nb_cells, nb_cells)
    lost_to_walls = heat.wall_heating(nb_cells, 1.0, 1.0, 1.0, 1.0).reshape(nb_cells, nb_cells)
    assert np.count_nonzero(lost_to_walls) == 4 * (nb_cells - 1)
    np.testing.assert_allclose(gained, -lost_to_walls, atol=1e-9 * lost_to_walls.max())


def test_at_rest_the_centre_has_the_mean_of_the_four_walls() -> None:
    field = simulate(500.0, *WALLS, nb_cells=21, nb_time_steps=600, substeps=2)[-1]
    assert field[10, 10] == pytest.approx(np.mean(WALLS), abs=1e-6)


def test_no_cell_is_ever_warmer_or_colder_than_the_warmest_and_the_coldest_of_the_five() -> None:
    fields = simulate(500.0, *WALLS)
    assert fields.min() >= min(WALLS) - 1e-6
    assert fields.max() <= 500.0 + 1e-6


def test_rows_go_up_and_columns_go_right() -> None:
    left, right, bottom, top = WALLS
    field = simulate(300.0, *WALLS, nb_cells=20)[-1]
    assert abs(field[10, 0] - left) < 20.0
    assert abs(field[10, -1] - right) < 20.0
    assert abs(field[0, 10] - bottom) < 20.0
    assert abs(field[-1, 10] - top) < 20.0
    mirrored = simulate(300.0, right, left, bottom, top, nb_cells=20)[-1]
    np.testing.assert_allclose(mirrored[:, ::-1], field, rtol=1e-12)
    turned = simulate(300.0, bottom, top, left, right, nb_cells=20)[-1]
    np.testing.assert_allclose(turned.T, field, rtol=1e-12)


def test_solutions_add_up() -> None:
    one, other = (300.0, *WALLS), (200.0, 100.0, 500.0, 120.0, 180.0)
    both = simulate(*np.add(one, other), nb_cells=20)
    np.testing.assert_allclose(simulate(*one, nb_cells=20) + simulate(*other, nb_cells=20), both, rtol=1e-10)


# The command line, with a stand-in for melissa_api that writes down what it is called with.
RECORDER = """
import numpy

calls = []

def melissa_init(name, size, comm=None):
    calls.append(("init", name, size))

def melissa_send(name, values):
    calls.append(("send", name, values.shape, float(values.mean())))

def melissa_finalize():
    sends = [call for call in calls if call[0] == "send"]
    print(calls[0], len(sends), sends[0][1:3], round(sends[-1][3], 3), len(calls))
"""


def run_solver(folder: Path, recorder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (recorder / "melissa_api.py").write_text(RECORDER)
    return subprocess.run(
        [sys.executable, str(folder / "heat.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(recorder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_the_solver_sends_every_time_step_once(heat_folder: Path, tmp_path: Path) -> None:
    done = run_solver(heat_folder, tmp_path, "100", "500", "500", "500", "500.0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "('init', 'temperature', 10000) 100 ('temperature', (10000,)) 496.713 101"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["300", "100"], "got [300.0, 100.0]"),
        (["300", "100", "500", "200", "warm"], "'warm'"),
        (["300", "100", "500", "200", "nan"], "nan"),
        (["300", "100", "500", "200", "-1"], "-1.0"),
    ],
)
def test_a_wrong_command_line_is_told_apart(
    heat_folder: Path, tmp_path: Path, arguments: list[str], named: str
) -> None:
    done = run_solver(heat_folder, tmp_path, *arguments)
    assert done.returncode == 1
    assert named in done.stderr
    assert "expected five temperatures in kelvin: initial left right bottom top" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_solver_alone_needs_no_melissa() -> None:
    source = "import heat, sys; next(heat.solve([300] * 5)); sys.exit('melissa_api' in sys.modules)"
    subprocess.run([sys.executable, "-c", source], cwd=Path(heat.__file__).parent, check=True, timeout=240)
