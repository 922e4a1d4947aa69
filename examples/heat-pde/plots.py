"""The pictures of the example: learning curves, and fields beside each other."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from heat import PARAMETER_NAMES, SIDE, TIME_STEP
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

# A Figure of its own, without pyplot, draws into files only: no display is needed and no state is kept.

SHOWN = (0.0, 0.04, 0.19, 1.0)  # of the time: heat at the walls, on its way, in the middle, nearly at rest
CENTIMETRES = (0.0, 100 * SIDE, 0.0, 100 * SIDE)


def draw_losses(
    path: str | os.PathLike[str],
    training: Sequence[tuple[int, float]],
    validation: Sequence[tuple[int, float]],
    constant_rmse: float,
) -> None:
    """Draw the errors of training and validation, as (batch, error in K), beside that of the constant."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    if training:
        batches, errors = np.array(training).T
        axes.plot(batches, errors, color="tab:blue", alpha=0.25, linewidth=0.6)
        axes.plot(batches, running_mean(errors), color="tab:blue", linewidth=1.5, label="training")
    if validation:
        batches, errors = np.array(validation).T
        label = f"validation, {errors[-1]:.2f} K at the end"
        axes.plot(batches, errors, color="tab:orange", marker=".", linewidth=1.5, label=label)
    label = f"mean field as prediction, {constant_rmse:.1f} K"
    axes.axhline(constant_rmse, color="0.4", linestyle="--", label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(left=0)
    axes.set_title("Learning while the simulations run")
    axes.set_xlabel("batches")
    axes.set_ylabel("root mean square error [K]")
    axes.grid(which="both", color="0.92")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over a window of a fiftieth of the curve; shorter windows at its ends."""
    window = np.ones(max(1, len(values) // 50))
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def draw_prediction(
    path: str | os.PathLike[str],
    parameters: Sequence[float],
    predicted: NDArray[np.floating],
    simulated: NDArray[np.floating] | None = None,
) -> None:
    """Draw a predicted simulation at some of its time steps; with the simulated one, that and the error, too.

    Both are (time steps, cells, cells) in K.
    """
    rows: dict[str, NDArray[np.floating]] = {"predicted": predicted}
    if simulated is not None:
        rows = {"simulated": simulated, "predicted": predicted, "error": predicted - simulated}
    shown = sorted({round(share * (len(predicted) - 1)) for share in SHOWN})
    figure = Figure(figsize=(2.4 * len(shown) + 1.4, 2.3 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), len(shown), sharex=True, sharey=True, squeeze=False)

    temperatures = {"cmap": "inferno", "vmin": min(parameters), "vmax": max(parameters)}
    for row, (name, fields) in zip(axes, rows.items(), strict=True):
        if name == "error":
            # The largest errors, early ones, may leave the scale: they would blanch all others.
            limit = max(float(np.quantile(np.abs(fields[shown]), 0.99)), 1e-6)
            error = draw_row(row, fields[shown], {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit})
            figure.colorbar(error, ax=row, label="predicted - simulated [K]", extend="both", aspect=15)
        else:
            temperature = draw_row(row, fields[shown], temperatures)
        row[0].set_ylabel("y [cm]")
        place = {
            "xy": (0.0, 0.5),
            "xycoords": "axes fraction",
            "xytext": (-50, 0),
            "textcoords": "offset points",
        }
        row[0].annotate(name, **place, rotation=90, va="center", ha="center", weight="bold")
    of_temperature = axes[: len(rows) - (simulated is not None)]
    figure.colorbar(temperature, ax=of_temperature, label="temperature [K]", aspect=15 * len(of_temperature))
    for column, step in zip(axes[0], shown, strict=True):
        column.set_title(f"t = {(step + 1) * TIME_STEP:.1f} s")
    for column in axes[-1]:
        column.set_xlabel("x [cm]")
        column.set(xticks=[0, 5, 10], yticks=[0, 5, 10])

    named = zip(PARAMETER_NAMES, parameters, strict=True)
    title = ", ".join(f"{name} {value:.0f} K" for name, value in named)
    if simulated is not None:
        title += f"\nroot mean square error over all time steps {rms(predicted - simulated):.2f} K"
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=150)


def draw_row(row: Sequence[Axes], fields: NDArray[np.floating], colours: Mapping[str, Any]) -> AxesImage:
    """Draw fields beside each other on one scale of colours; return the last one."""
    for axes, field in zip(row, fields, strict=True):
        image = axes.imshow(field, origin="lower", extent=CENTIMETRES, **colours)
    return image


def rms(values: NDArray[np.floating]) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
