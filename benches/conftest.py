"""Ratios to a bound, measured in the same run: each contestant in turn with the bound."""

import json
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict

import pytest
from table import HEADS, Row, aligned

ROWS: list[Row] = []

Figures = tuple[float, ...]


def write(line: dict[str, object]) -> None:
    """Append a line to the file that ``MELISSA_BENCH_ROWS`` names, as the benches in Rust do."""
    if path := os.environ.get("MELISSA_BENCH_ROWS"):
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")


def add(row: Row) -> None:
    """Add a row to the table."""
    ROWS.append(row)
    write(asdict(row))


@pytest.fixture
def compare(benchmark) -> Callable[..., None]:
    """Run contestants in turn, each beside the bound; larger figures are better.

    A run gives one figure, or several that `names` tells apart; each becomes a row, whose ratio is the median
    over the pairs. Contestant and bound take turns in going first, and the first pair of each is the warm-up.
    `bars` has the contestants that are held to a bar; the others are rivals, whose ratios stand beside ours.
    """

    def run(
        what: str,
        contestants: Mapping[str, Callable[[], Figures]],
        bound: Callable[[], Figures],
        *,
        unit: str,
        bars: Mapping[str, str],
        names: tuple[str, ...],
        rounds: int = 8,
    ) -> None:
        pairs: dict[str, list[tuple[Figures, Figures]]] = {name: [] for name in contestants}

        def one_round() -> None:
            for name, contestant in contestants.items():
                if len(pairs[name]) % 2:
                    mine, theirs = contestant(), bound()
                else:
                    theirs, mine = bound(), contestant()
                pairs[name].append((mine, theirs))

        benchmark.pedantic(one_round, rounds=rounds + 1, iterations=1)
        for contestant, of_contestant in pairs.items():
            for index, name in enumerate(names):
                figures = [(mine[index], theirs[index]) for mine, theirs in of_contestant[1:]]
                ratios = sorted(mine / theirs for mine, theirs in figures)
                row = Row(
                    f"{what}, {contestant}, {name}",
                    statistics.median(mine for mine, _ in figures),
                    statistics.median(theirs for _, theirs in figures),
                    unit,
                    statistics.median(ratios),
                    f"{ratios[0]:.2f}..{ratios[-1]:.2f}",
                    bars.get(contestant, ""),
                )
                add(row)
                benchmark.extra_info[row.what] = row.ratio

    return run


@pytest.fixture
def report() -> Callable[..., None]:
    """Add a row that was measured otherwise."""

    def report(what: str, ours: float, bound: float, *, unit: str, bar: str, spread: str = "") -> None:
        add(Row(what, ours, bound, unit, ours / bound, spread, bar))

    return report


@pytest.fixture
def leave_out() -> Callable[[str, str], None]:
    """Say in the table what was not measured, and why."""
    return lambda what, reason: write({"what": what, "skipped": reason})


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    terminalreporter.section("ratios to the bounds")
    lines = [HEADS, *(row.cells() for row in ROWS)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        terminalreporter.write_line(aligned(line, widths))
