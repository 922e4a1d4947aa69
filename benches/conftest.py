"""Ratios to a bound or a rival, measured in the same run, both sides in turn."""

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

ROWS: list["Row"] = []


@dataclass
class Row:
    """One line of the table: a figure of ours beside its bound."""

    what: str
    ours: float
    bound: float
    unit: str
    ratio: float
    spread: str
    bar: str


@pytest.fixture
def compare(benchmark) -> Callable[..., float]:
    """Run ``ours`` and ``bound`` in turn; each gives one figure or several, of which the worst ratio counts.

    Larger figures are better. Returns the median of the ratios of the pairs.
    """

    def run(what: str, ours, bound, *, unit: str, bar: str, rounds: int = 7, names=("",)) -> float:
        bounds: list[tuple[float, ...]] = []
        mine: list[tuple[float, ...]] = []

        def as_tuple(figures):
            return figures if isinstance(figures, tuple) else (figures,)

        as_tuple(bound()), as_tuple(ours())  # warm
        benchmark.pedantic(
            lambda: mine.append(as_tuple(ours())),
            setup=lambda: bounds.append(as_tuple(bound())),
            rounds=rounds,
            iterations=1,
        )
        worst = float("inf")
        for index, name in enumerate(names):
            ratios = sorted(a[index] / b[index] for a, b in zip(mine, bounds, strict=True))
            ratio = statistics.median(ratios)
            worst = min(worst, ratio)
            ROWS.append(
                Row(
                    f"{what}{', ' if name else ''}{name}",
                    statistics.median(figures[index] for figures in mine),
                    statistics.median(figures[index] for figures in bounds),
                    unit,
                    ratio,
                    f"{ratios[0]:.2f}..{ratios[-1]:.2f}",
                    bar,
                )
            )
        benchmark.extra_info["ratio"] = worst
        return worst

    return run


@pytest.fixture
def report() -> Callable[..., None]:
    """Add a line that was measured otherwise."""

    def add(what: str, ours: float, bound: float, *, unit: str, bar: str, spread: str = "") -> None:
        ROWS.append(Row(what, ours, bound, unit, ours / bound, spread, bar))

    return add


def pytest_addoption(parser):
    parser.addoption("--ratios", metavar="FILE", help="write the table as JSON")


def pytest_terminal_summary(terminalreporter, config):
    if not ROWS:
        return
    terminalreporter.section("ratios to the bounds")
    width = max(len(row.what) for row in ROWS)
    line = f"{'':{width}}  {'ours':>10}  {'bound':>10}  {'unit':<12} {'ratio':>6}  {'spread':<11} bar"
    terminalreporter.write_line(line)
    for row in ROWS:
        terminalreporter.write_line(
            f"{row.what:{width}}  {row.ours:>10.4g}  {row.bound:>10.4g}  {row.unit:<12} {row.ratio:>6.2f}  "
            f"{row.spread:<11} {row.bar}"
        )
    if path := config.getoption("--ratios"):
        Path(path).write_text(json.dumps([asdict(row) for row in ROWS], indent=1))
