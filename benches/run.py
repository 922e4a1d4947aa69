"""Run the benches one after the other, the Rust ones first, and print one table of their ratios.

    python benches/run.py [NAME ...] [--strict]      (`make bench` runs all; `--list` names them)

Each ratio is shown as soon as it is measured. What the benches print goes to target/benches/log, their rows
to target/benches/rows, and the table to target/benches/table.json and table.md. A bench that runs alone
replaces its own rows; the others' stay, and are not in the table. Exit status 1 when a bench broke, or, if
`--strict`, when a bar is missed.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import describe_machine
from table import Row, Table, read_rows, section_order

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "target" / "benches"
ROWS, LOGS, SECONDS = TARGET / "rows", TARGET / "log", TARGET / "seconds.json"
MOST_SECONDS = 900.0
"""A bench that takes longer hangs: it is ended, and counts as broken."""


@dataclass(frozen=True)
class Bench:
    """A bench: its name, and the command that appends its rows to ``MELISSA_BENCH_ROWS``."""

    name: str
    command: Sequence[str]


def rows_of(name: str) -> Path:
    """Return the file of a bench's rows."""
    return ROWS / f"{name}.jsonl"


def rust_benches() -> list[Bench]:
    """Return the criterion benches of the workspace; none where there is no cargo."""
    if shutil.which("cargo") is None:
        print("There is no cargo: the benches in Rust are left out.")
        return []
    command = ["cargo", "metadata", "--no-deps", "--format-version", "1", "--locked"]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [
        Bench(
            target["name"],
            ["cargo", "bench", "--locked", "--package", package["name"], "--bench", target["name"]],
        )
        for package in json.loads(output)["packages"]
        for target in package["targets"]
        if target["kind"] == ["bench"]
    ]


def python_benches() -> list[Bench]:
    """Return the benches of this folder."""
    return [
        Bench(
            path.stem.removeprefix("bench_"),
            [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(path)],
        )
        for path in Path(__file__).parent.glob("bench_*.py")
    ]


def build(benches: list[Bench]) -> bool:
    """Build benches in Rust, so that no build runs beside a measurement; say whether that went well."""
    if not benches:
        return True
    print("building the benches in Rust", end=" ", flush=True)
    begin = time.monotonic()
    with (LOGS / "build.log").open("w") as log:
        for bench in benches:
            command = [*bench.command, "--no-run"]
            if subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode != 0:
                print(f"... FAILED: see {log.name}")
                return False
    print(f"... {time.monotonic() - begin:.0f} s")
    return True


class Followed:
    """A file of rows that a bench appends to; `show` prints what is new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shown = 0

    def show(self) -> None:
        """Print the rows that came since the last call."""
        if not self._path.exists():
            return
        # The last line may not be whole yet.
        lines = self._path.read_text().split("\n")[:-1]
        for line in lines[self._shown :]:
            row = json.loads(line)
            if "skipped" in row:
                print(f"    not measured: {row['what']}: {row['skipped']}", flush=True)
                continue
            cells = Row(**row).cells()
            print(f"    {cells[4]:>8}  {cells[6]:<8}{cells[7]:<6}  {cells[0]}", flush=True)
        self._shown = len(lines)

    @property
    def is_empty(self) -> bool:
        """Whether no row was shown yet."""
        return self._shown == 0


def run(bench: Bench) -> str:
    """Run a bench to its end; return what is wrong with it, or ""."""
    rows, log = rows_of(bench.name), LOGS / f"{bench.name}.log"
    followed = Followed(rows)
    with log.open("w") as file:
        process = subprocess.Popen(
            bench.command,
            cwd=ROOT,
            env=os.environ | {"MELISSA_BENCH_ROWS": str(rows)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + MOST_SECONDS
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    return f"took more than {MOST_SECONDS:.0f} s; its output is in {log}"
                time.sleep(1.0)
                followed.show()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    followed.show()
    if process.returncode != 0:
        return f"ended with status {process.returncode}; its output is in {log}"
    if followed.is_empty and "time:   [" in log.read_text():
        print(f"    criterion's own figures, without a bound: {log}")
    elif followed.is_empty:
        return "measured nothing"
    return ""


def run_all(benches: list[Bench]) -> list[str]:
    """Run benches one after the other; return what is wrong with those that broke."""
    known = json.loads(SECONDS.read_text()) if SECONDS.exists() else {}
    broken = []
    for number, bench in enumerate(benches, 1):
        expected = f", {known[bench.name]:.0f} s last time" if bench.name in known else ""
        print(f"{bench.name} ({number} of {len(benches)}{expected})", flush=True)
        begin = time.monotonic()
        problem = run(bench)
        seconds = time.monotonic() - begin
        if problem:
            broken.append(f"{bench.name} {problem}")
            print(f"    BROKEN after {seconds:.0f} s: {broken[-1]}", flush=True)
            continue
        print(f"    {seconds:.0f} s", flush=True)
        known[bench.name] = round(seconds, 1)
        SECONDS.write_text(json.dumps(known))
    return broken


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benches to run; all without one")
    parser.add_argument("--list", action="store_true", help="name the benches, and run none")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 when a bar is missed")
    options = parser.parse_args()
    rust, python = rust_benches(), python_benches()
    benches = sorted(rust + python, key=lambda bench: section_order(bench.name))
    known = [bench.name for bench in benches]
    if options.list:
        print("\n".join(known))
        return 0
    if unknown := set(options.names) - set(known):
        parser.error(f"no bench {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    names = options.names or known
    chosen = [bench for bench in benches if bench.name in names]
    machine = describe_machine(f"make bench BENCH='{' '.join(names)}'" if options.names else "make bench")
    for folder in (ROWS, LOGS):
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        rows_of(name).unlink(missing_ok=True)
    broken = []
    if not build([bench for bench in chosen if bench in rust]):
        broken.append("the benches in Rust cannot be built")
        chosen = [bench for bench in chosen if bench not in rust]
    broken += run_all(chosen)
    table = Table(machine, {name: rows for name, rows in read_rows(ROWS).items() if name in names})
    table.write(TARGET / "table.json")
    (TARGET / "table.md").write_text("\n".join(table.markdown()) + "\n")
    print()
    print("\n".join(table.text()))
    print(f"The table is in {TARGET / 'table.json'} and table.md.")
    for problem in broken:
        print(f"BROKEN: {problem}")
    return 1 if broken or (options.strict and table.missed()) else 0


if __name__ == "__main__":
    sys.exit(main())
