"""Predict a simulation with a trained surrogate: no server, no study, a few milliseconds.

    python predict.py MODEL INITIAL LEFT RIGHT BOTTOM TOP [--compare] [-o PNG]

MODEL is the file surrogate.pt in a study's output folder; the five temperatures are in kelvin. With --compare
the solver runs, too, and the error is shown.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from heat import COLDEST, HOTTEST, PARAMETER_NAMES, solve
from plots import draw_prediction, rms
from surrogate import HeatSurrogate


def main() -> None:
    """Read the command line, predict, draw."""
    parser = argparse.ArgumentParser(description="Predict a simulation with a trained surrogate.")
    parser.add_argument("model", type=Path, help="surrogate.pt of a study")
    for name in PARAMETER_NAMES:
        parser.add_argument(name, type=float, help="temperature in K")
    parser.add_argument("--compare", action="store_true", help="run the solver, too, and show the error")
    parser.add_argument("-o", "--output", default="prediction.png", help="PNG to write (%(default)s)")
    arguments = parser.parse_args()
    parameters = [getattr(arguments, name) for name in PARAMETER_NAMES]
    if not arguments.model.is_file():
        parser.error(f"there is no file {arguments.model}: name the surrogate.pt in a study's output folder")
    if not all(COLDEST <= value <= HOTTEST for value in parameters):
        print(f"beware: the surrogate was trained between {COLDEST:.0f} K and {HOTTEST:.0f} K only")

    surrogate = HeatSurrogate.load(arguments.model)
    start = time.perf_counter()
    predicted = surrogate.predict(parameters).numpy()
    seconds = time.perf_counter() - start
    print(f"predicted {len(predicted)} time steps in {1000 * seconds:.0f} ms")

    simulated = None
    if arguments.compare:
        start = time.perf_counter()
        fields = solve(parameters, nb_cells=surrogate.nb_cells, nb_time_steps=surrogate.nb_time_steps)
        simulated = np.array(list(fields))
        seconds = time.perf_counter() - start
        print(f"simulated them in {1000 * seconds:.0f} ms")
        print(f"root mean square error {rms(predicted - simulated):.2f} K")
    draw_prediction(arguments.output, parameters, predicted, simulated)
    print(f"see {arguments.output}")


if __name__ == "__main__":
    main()
