"""The network of the heat example, its file, and the predictions that need no server."""

import subprocess
import sys
from pathlib import Path

import heat
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

import plots  # noqa: E402
from surrogate import HeatSurrogate  # noqa: E402

PARAMETERS = (300.0, 100.0, 500.0, 200.0, 400.0)
PNG = b"\x89PNG\r\n\x1a\n"


def make_surrogate(nb_cells: int = 8, nb_time_steps: int = 100, seed: int = 0) -> HeatSurrogate:
    torch.manual_seed(seed)
    return HeatSurrogate(nb_cells, nb_time_steps, hidden=16)


def test_one_row_of_temperatures_comes_out_for_each_row_of_inputs() -> None:
    fields = make_surrogate()(torch.tensor([[*PARAMETERS, 0.0], [*PARAMETERS, 99.0], [*PARAMETERS, 50.0]]))
    assert fields.shape == (3, 64)
    assert fields.dtype == torch.float32
    assert torch.isfinite(fields).all()


def test_the_default_network_is_the_one_of_the_example() -> None:
    layers = [m for m in HeatSurrogate(100, 100).layers if isinstance(m, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [
        (6, 256),
        (256, 256),
        (256, 10000),
    ]


def test_a_whole_simulation_is_predicted_as_its_time_steps_one_by_one() -> None:
    surrogate = make_surrogate()
    simulation = surrogate.predict(PARAMETERS)
    assert simulation.shape == (100, 8, 8)
    one = surrogate(torch.tensor([[*PARAMETERS, 37.0]])).detach()
    torch.testing.assert_close(simulation[37].reshape(1, -1), one)


def test_ten_kelvin_more_on_all_five_is_ten_kelvin_more_everywhere() -> None:
    surrogate = make_surrogate()
    warmer = [value + 10.0 for value in PARAMETERS]
    torch.testing.assert_close(surrogate.predict(warmer), surrogate.predict(PARAMETERS) + 10.0)


def test_a_saved_network_predicts_the_same_again(tmp_path: Path) -> None:
    surrogate = make_surrogate()
    surrogate.save(tmp_path / "surrogate.pt")
    loaded = HeatSurrogate.load(tmp_path / "surrogate.pt")
    assert torch.equal(loaded.predict(PARAMETERS), surrogate.predict(PARAMETERS))
    assert not loaded.training


def test_the_network_learns_a_coarse_plate_ten_times_better_than_its_mean() -> None:
    nb_cells, nb_time_steps = 10, 100
    rng = np.random.default_rng(1)
    parameters = rng.uniform(heat.COLDEST, heat.HOTTEST, size=(30, 5))
    simulations = [list(heat.solve(row, nb_cells=nb_cells, substeps=2)) for row in parameters]
    fields = torch.tensor(np.array(simulations), dtype=torch.float32).reshape(-1, nb_cells**2)
    time_steps = np.tile(np.arange(nb_time_steps), len(parameters))
    rows = np.column_stack([np.repeat(parameters, nb_time_steps, axis=0), time_steps])
    inputs = torch.tensor(rows, dtype=torch.float32)
    known = 25 * nb_time_steps  # the last five simulations are not trained on
    torch.manual_seed(1)
    surrogate = HeatSurrogate(nb_cells, nb_time_steps, hidden=64)
    optimizer = torch.optim.Adam(surrogate.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        batch = torch.from_numpy(rng.integers(known, size=32))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(surrogate(inputs[batch]), fields[batch]).backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        error = (surrogate(inputs[known:]) - fields[known:]).square().mean().sqrt()
    constant = (fields[:known].mean(dim=0) - fields[known:]).square().mean().sqrt()
    assert error * 10 < constant


def run_predict(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(folder / "predict.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_predict_draws_an_unseen_simulation_beside_the_solver(heat_folder: Path, tmp_path: Path) -> None:
    make_surrogate(nb_cells=12).save(tmp_path / "surrogate.pt")
    picture = tmp_path / "out.png"
    done = run_predict(heat_folder, tmp_path / "surrogate.pt", *PARAMETERS, "--compare", "-o", picture)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(PNG)
    predicted, simulated, error, see = done.stdout.splitlines()
    assert predicted.startswith("predicted 100 time steps in ")
    assert simulated.startswith("simulated them in ")
    assert 0.0 < float(error.removeprefix("root mean square error ").removesuffix(" K")) < 400.0
    assert see == f"see {picture}"


def test_predict_says_which_file_is_missing(heat_folder: Path, tmp_path: Path) -> None:
    done = run_predict(heat_folder, tmp_path / "surrogate.pt", *PARAMETERS)
    assert done.returncode == 2
    assert f"there is no file {tmp_path / 'surrogate.pt'}" in done.stderr


def test_predict_warns_of_temperatures_that_were_never_trained(heat_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "surrogate.pt"
    make_surrogate(nb_cells=4).save(model)
    done = run_predict(heat_folder, model, 600, *PARAMETERS[1:], "-o", tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    assert "trained between 100 K and 500 K only" in done.stdout


@pytest.mark.parametrize(
    ("training", "validation"),
    [([], []), ([(10, 80.0)], []), ([(10 * i, 80.0 / i) for i in range(1, 200)], [(1000, 3.0), (1990, 2.0)])],
)
def test_curves_of_any_length_are_drawn(
    tmp_path: Path, training: list[tuple[int, float]], validation: list[tuple[int, float]]
) -> None:
    plots.draw_losses(tmp_path / "losses.png", training, validation, 75.0)
    assert (tmp_path / "losses.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("nb_time_steps", [1, 3, 100])
def test_fields_of_one_temperature_and_of_few_time_steps_are_drawn(
    tmp_path: Path, nb_time_steps: int
) -> None:
    fields = np.full((nb_time_steps, 5, 5), 300.0)
    plots.draw_prediction(tmp_path / "fields.png", [300.0] * 5, fields, fields)
    assert (tmp_path / "fields.png").read_bytes().startswith(PNG)
