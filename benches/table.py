"""Make one table of what the benches measured.

    python benches/table.py FOLDER [--json FILE] [--command TEXT]
    python benches/table.py target/benches/table.json --markdown

Every bench appends its rows, a JSON object in a line each, to a file of its own in FOLDER; a file is a
section of the table. The machine is described as it is now: a table that was written as JSON keeps the
description of its day.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import describe_machine

TITLES = {
    "assembly": "Batch assembly",
    "together": "Receiver and sampler together",
    "scale": "Cost by population",
    "ingest": "Ingest",
    "fast_lane": "From Python: batches drawn beside inserts",
    "view_lane": "From Python: samples one by one",
    "training": "Training with live producers",
    "memory": "Memory",
    "checkpoint": "Checkpoints",
}
"""Titles of sections by the names of benches, in their order; other benches come last, under their names."""

HEADS = ("what", "measured", "bound", "unit", "ratio", "spread", "bar", "")


@dataclass(frozen=True)
class Row:
    """A figure beside its bound.

    `spread` is the lowest and the highest ratio of a pair; `bar` is "" or like ">= 0.90".
    """

    what: str
    ours: float
    bound: float
    unit: str
    ratio: float
    spread: str
    bar: str

    @property
    def holds(self) -> bool | None:
        """Whether the ratio keeps to its bar; None without one."""
        if not self.bar:
            return None
        relation, _, limit = self.bar.partition(" ")
        if relation not in (">=", "<="):
            raise ValueError(
                f"the bar of {self.what!r} is {self.bar!r}, expected one like '>= 0.90' or '<= 1.05'"
            )
        return self.ratio >= float(limit) if relation == ">=" else self.ratio <= float(limit)

    def cells(self) -> tuple[str, ...]:
        """Return the row's cells in the order of `HEADS`."""
        verdict = {True: "holds", False: "BELOW", None: ""}[self.holds]
        if verdict == "BELOW" and self.bar.startswith("<="):
            verdict = "ABOVE"
        ratio = f"{self.ratio:.3f}" if self.ratio < 100 else f"{self.ratio:.0f}"
        return (
            self.what,
            figure(self.ours),
            figure(self.bound),
            self.unit,
            ratio,
            self.spread,
            self.bar,
            verdict,
        )


def figure(value: float) -> str:
    """Write a figure with three digits or more, and without an exponent where it can be read so."""
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def read_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of each file by the file's name; of two with the same `what` the later counts."""
    sections = {}
    for path in sorted(folder.glob("*.jsonl"), key=lambda path: section_order(path.stem)):
        rows = {}
        for line in path.read_text().splitlines():
            row = json.loads(line)
            rows[row["what"]] = row
        sections[path.stem] = list(rows.values())
    return sections


def section_order(name: str) -> tuple[int, str]:
    """Return the key by which sections are sorted."""
    return (list(TITLES).index(name) if name in TITLES else len(TITLES), name)


@dataclass(frozen=True)
class Table:
    """All rows by section, and where they were measured; `sections` holds rows as their JSON has them.

    A line with "skipped" instead of figures says why something was not measured.
    """

    machine: dict[str, str]
    sections: dict[str, list[dict[str, Any]]]

    @classmethod
    def read(cls, path: Path, command: str) -> "Table":
        """Read a table's JSON, or make a table of a folder of rows."""
        if path.is_file():
            return cls(**json.loads(path.read_text()))
        return cls(describe_machine(command), read_rows(path))

    def write(self, path: Path) -> None:
        """Write the table as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def rows(self, name: str) -> list[Row]:
        """Return the rows of a section."""
        return [Row(**row) for row in self.sections[name] if "skipped" not in row]

    def skipped(self, name: str) -> list[str]:
        """Return what was not measured in a section, with reasons."""
        return [f"{row['what']}: {row['skipped']}" for row in self.sections[name] if "skipped" in row]

    def missed(self) -> list[Row]:
        """Return the rows that do not keep to their bars."""
        return [row for name in self.sections for row in self.rows(name) if row.holds is False]

    def verdict(self) -> str:
        """Count the rows that keep to their bars, in a line."""
        barred = [row for name in self.sections for row in self.rows(name) if row.bar]
        missed = self.missed()
        if not missed:
            return f"All {len(barred)} bars hold."
        return f"{len(missed)} of {len(barred)} bars missed."

    def text(self) -> Iterable[str]:
        """Yield the lines of the table for a terminal."""
        width = max((len(name) for name in self.machine), default=0)
        yield from (f"{name:{width}}  {value}" for name, value in self.machine.items())
        rows = [row.cells() for name in self.sections for row in self.rows(name)]
        widths = [max(map(len, column)) for column in zip(HEADS, *rows, strict=True)]
        heads = aligned(HEADS, widths)
        for name in self.sections:
            yield from ("", TITLES.get(name, name), heads)
            yield from (aligned(row.cells(), widths) for row in self.rows(name))
            yield from (f"not measured: {line}" for line in self.skipped(name))
        yield from ("", self.verdict())

    def markdown(self) -> Iterable[str]:
        """Yield the lines of the table for a page."""
        yield from (f"- {name}: {value}" for name, value in self.machine.items())
        for name in self.sections:
            yield from ("", f"**{TITLES.get(name, name)}**", "")
            yield f"| {' | '.join(HEADS)} |"
            yield "| --- | ---: | ---: | --- | ---: | --- | --- | --- |"
            yield from (f"| {' | '.join(row.cells())} |" for row in self.rows(name))
            if lines := self.skipped(name):
                yield from ("", *(f"Not measured: {line}" for line in lines))
        yield from ("", self.verdict())


def aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    """Put cells of a line at their widths: figures to the right, texts to the left."""
    return "  ".join(
        f"{cell:>{width}}" if head in ("measured", "bound", "ratio") else f"{cell:<{width}}"
        for head, cell, width in zip(HEADS, cells, widths, strict=True)
    ).rstrip()


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path, help="folder of the benches' rows (*.jsonl), or a table's JSON")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON, too")
    parser.add_argument("--markdown", action="store_true", help="print it as Markdown")
    parser.add_argument(
        "--command", default="make bench", help="what the figures were made with, for the description"
    )
    parser.add_argument("--strict", action="store_true", help="exit with status 1 when a bar is missed")
    options = parser.parse_args()
    if not options.rows.exists():
        parser.error(f"there is no {options.rows}: run `make bench` first")
    table = Table.read(options.rows, options.command)
    if options.json is not None:
        table.write(options.json)
    for line in table.markdown() if options.markdown else table.text():
        print(line)
    return 1 if options.strict and table.missed() else 0


if __name__ == "__main__":
    sys.exit(main())
