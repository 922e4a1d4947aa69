"""The table of the benches: which bars hold, and what the exit status says of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benches" / "table.py"


def row(what, ratio, bar):
    return {
        "what": what,
        "ours": 100 * ratio,
        "bound": 100.0,
        "unit": "1/s",
        "ratio": ratio,
        "spread": "",
        "bar": bar,
    }


@pytest.fixture
def table(tmp_path):
    """Write files of rows, and run the script on their folder."""

    def run(files, *arguments):
        for name, rows in files.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
        command = [sys.executable, str(SCRIPT), str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=240)

    return run


def test_a_row_holds_at_its_bar_and_not_beyond_it(table):
    rows = [
        row("as fast as asked", 0.90, ">= 0.90"),
        row("a little slower", 0.8999, ">= 0.90"),
        row("as large as allowed", 1.05, "<= 1.05"),
        row("a little larger", 1.0501, "<= 1.05"),
        row("a rival", 0.1, ""),
    ]
    result = table({"fast_lane": rows})
    assert result.returncode == 0, result.stderr
    verdicts = {line.split("  ")[0]: line.split()[-1] for line in result.stdout.splitlines() if "1/s" in line}
    assert verdicts == {
        "as fast as asked": "holds",
        "a little slower": "BELOW",
        "as large as allowed": "holds",
        "a little larger": "ABOVE",
        "a rival": "0.100",
    }
    assert "2 of 4 bars missed." in result.stdout


def test_a_missed_bar_fails_the_command_only_when_it_is_strict(table):
    missed, held = {"memory": [row("slots", 1.2, "<= 1.05")]}, {"memory": [row("slots", 1.0, "<= 1.05")]}
    assert table(missed).returncode == 0
    assert table(missed, "--strict").returncode == 1
    assert table(held, "--strict").returncode == 0


def test_of_two_rows_of_one_name_the_later_counts(table):
    result = table({"memory": [row("slots", 1.2, "<= 1.05"), row("slots", 1.0, "<= 1.05")]})
    assert "All 1 bars hold." in result.stdout


def test_sections_come_in_the_order_of_the_parts_and_unknown_ones_last(table):
    result = table({name: [row(name, 1.0, "")] for name in ("another", "memory", "ingest")})
    lines = result.stdout.splitlines()
    assert lines.index("Ingest") < lines.index("Memory") < lines.index("another")


def test_what_was_not_measured_is_said(table):
    skipped = {"what": "torchrl", "skipped": "it is not installed"}
    result = table({"fast_lane": [row("ours", 1.0, ">= 0.90"), skipped]})
    assert "not measured: torchrl: it is not installed" in result.stdout


def test_a_written_table_can_be_printed_as_markdown_with_the_machine_of_its_day(table, tmp_path):
    path = tmp_path / "table.json"
    table({"memory": [row("slots", 1.0, "<= 1.05")]}, "--json", str(path), "--command", "make bench")
    content = json.loads(path.read_text())
    content["machine"]["CPU"] = "a machine of another day"
    path.write_text(json.dumps(content))
    command = [sys.executable, str(SCRIPT), str(path), "--markdown"]
    page = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240).stdout
    assert "- CPU: a machine of another day\n" in page
    assert "| slots | 100 | 100 | 1/s | 1.000 |  | <= 1.05 | holds |\n" in page


def test_a_bar_that_cannot_be_read_is_an_error_that_names_the_row(table):
    result = table({"memory": [row("slots", 1.0, "about 1")]})
    assert result.returncode == 1
    assert "the bar of 'slots' is 'about 1', expected one like" in result.stderr
