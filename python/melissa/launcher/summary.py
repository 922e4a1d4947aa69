"""The table at the end of a study: the content of ``study_report.json`` in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from melissa.launcher.wording import count, duration, share, significant

__all__ = ["summary_table"]


def summary_table(report: Mapping[str, Any], title: str) -> Table:
    """Make the table of a study's report; it leaves out what the report lacks, and shows what else it has."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.ROUNDED, show_header=False)
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for section in (_simulations, _samples, _training, _others):
        rows = list(section(report))
        for label, value, words in rows:
            table.add_row(label, Text(value), Text(words))
        if rows:
            table.add_section()
    return table


_Row = tuple[str, str, str]

# The rest of a report is shown key by key, but for the figures of single ranks.
_KNOWN = frozenset(
    {
        "simulations",
        "ledger",
        "batches",
        "samples_received",
        "samples_delivered",
        "samples_per_second",
        "waits",
        "seconds",
        "ranks",
        "fast_dev_run",
    }
)


def _simulations(report: Mapping[str, Any]) -> Iterator[_Row]:
    simulations = _mapping(report, "simulations")
    if "finished" in simulations:
        states = ("failed", "resubmitted")
        others = [f"{count(simulations[state])} {state}" for state in states if simulations.get(state)]
        planned = f"of {count(simulations['planned'])}" if "planned" in simulations else ""
        yield "simulations finished", count(simulations["finished"]), ", ".join([planned, *others])


def _samples(report: Mapping[str, Any]) -> Iterator[_Row]:
    ledger = _mapping(report, "ledger")
    if "declared" not in ledger:
        return
    yield "samples received", count(ledger["declared"]), ""
    yield "trained", count(ledger.get("trained", 0)), "at least once"
    dropped = _mapping(ledger, "dropped")
    reasons = [f"{count(number)} {reason.replace('_', ' ')}" for reason, number in dropped.items() if number]
    yield "dropped", count(sum(dropped.values())), ", ".join(reasons)
    if ledger.get("duplicates_refused"):
        yield "duplicates refused", count(ledger["duplicates_refused"]), "beside the sum"


def _training(report: Mapping[str, Any]) -> Iterator[_Row]:
    if "batches" in report:
        delivered = f"{count(report['samples_delivered'])} samples" if "samples_delivered" in report else ""
        yield "batches", count(report["batches"]), delivered
    if "samples_per_second" in report:
        yield "samples/s", significant(report["samples_per_second"]), "trained"
    seconds = report.get("seconds", 0)
    for label, name in (("trainer waited", "trainer_for_data_s"), ("receiver waited", "receiver_for_room_s")):
        wait = _mapping(report, "waits").get(name)
        if wait is not None:
            what = "for data" if name.startswith("trainer") else "for room"
            yield label, f"{significant(wait)} s", f"{what}, {share(wait / seconds)}" if seconds else what
    if seconds:
        yield "time", duration(seconds), ""


def _others(report: Mapping[str, Any]) -> Iterator[_Row]:
    for name, value in report.items():
        if name in _KNOWN:
            continue
        figures = value if isinstance(value, dict) else {"": value}
        for key, figure in figures.items():
            label = f"{name} {key}".strip().replace("_", " ")
            is_number = isinstance(figure, int | float) and not isinstance(figure, bool)
            yield label, significant(figure) if is_number else str(figure), ""


def _mapping(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = report.get(name)
    return value if isinstance(value, dict) else {}
