"""``melissa-inspect``: prints what is in a checkpoint, and whether a server could go on from it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import melissa
from melissa.exceptions import MelissaError
from melissa.inspect.contents import contents, find_checkpoint

__all__ = ["main"]


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="melissa-inspect",
        description="Print what is in a checkpoint of a study, and check it.",
        epilog="Exit status: 0 for a checkpoint that a server can go on from, 1 for one that is damaged or "
        "not whole, 2 where there is none.",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="folder of a checkpoint, checkpoints/melissa/<batch>; of a folder above it, the output folder "
        "of a study say, the newest one is taken",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--quick", action="store_true", help="leave the checksums out, for which every byte is read"
    )
    parser.add_argument("--version", action="version", version=f"melissa-inspect {melissa.__version__}")
    return parser.parse_args(arguments)


def _bytes(count: int) -> str:
    size, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        del units[0]
    return f"{count} bytes" if units[0] == "bytes" else f"{size:.1f} {units[0]}"


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _statuses(simulations: dict[str, Any]) -> str:
    return ", ".join(f"{count} {status}" for status, count in simulations["statuses"].items()) or "none"


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"checkpoint {found['path']}"]
    rows: list[tuple[str, str]] = [("batches trained", str(found["batch"]))]
    if "written" in found:
        rows += [
            ("written", f"{found['written']}, by start {found['study_epoch']} of the server"),
            ("study has run", f"{found['seconds']:.1f} s"),
        ]
    rows += [("server ranks", str(found["nb_ranks"])), ("size", _bytes(found["bytes"]))]
    if "simulations" in found:
        simulations = found["simulations"]
        rows += [
            ("simulations", f"{simulations['asked_for']} asked for: {_statuses(simulations)}"),
            ("parameters drawn", str(simulations["parameters_drawn"])),
        ]
    if "validation" in found:
        validation = found["validation"]
        sizes = validation["files"].values()
        where = f"{_bytes(sum(sizes))} in {_counted(len(sizes), 'file')} beside the checkpoints"
        asked_for = f"{validation['asked_for']} asked for: {_statuses(validation)}"
        rows.append(("for validation", f"{asked_for}; {where}"))
    lines += _aligned(rows)
    for rank in found["ranks"]:
        lines.append(f"rank {rank['rank']}")
        lines += _aligned(_rank_rows(rank))
    lost = found.get("validation", {}).get("lost", [])
    lines += [f"LOST, and its simulations for validation run again: {text}" for text in lost]
    checked = "every checksum is right" if found["checked"] else "checksums were not looked at"
    lines += [f"PROBLEM: {problem}" for problem in found["problems"]] or [f"whole; {checked}"]
    return lines


def _rank_rows(rank: dict[str, Any]) -> list[tuple[str, str]]:
    buffer, ledger = rank["buffer"], rank["ledger"]
    fields = ", ".join(f"{field['name']} ({field['size']} x {field['dtype']})" for field in rank["fields"])
    waiting = rank["waiting_batches"]
    dropped = sum(count for name, count in ledger.items() if name.startswith("dropped"))
    return [
        (
            "buffer",
            f"{buffer['kind']}, {buffer['population']} of {buffer['capacity']} samples, watermark "
            f"{buffer['watermark']}{', reception over' if buffer['closed'] else ''}",
        ),
        ("samples hold", f"{fields} and {_counted(buffer['nb_parameters'], 'parameter')}"),
        (
            "drawn, not trained",
            f"{_counted(sum(waiting), 'sample')} in {_counted(len(waiting), 'group')}"
            if waiting
            else "nothing",
        ),
        (
            "time steps",
            f"{ledger['declared']} declared, {ledger['complete']} complete, {ledger['trained']} trained, "
            f"{dropped} dropped",
        ),
        (
            "simulations",
            f"{rank['simulations_finished']} of {rank['simulations_known']} known here are finished",
        ),
        ("delivered", f"{rank['samples_delivered']} samples in {rank['batches']} batches"),
        ("files", ", ".join(f"{name} ({_bytes(size)})" for name, size in rank["files"].items())),
    ]


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    return [f"  {name:<18}  {text}" for name, text in rows]


def main(arguments: list[str] | None = None) -> int:
    """Print the contents of a checkpoint; return the exit status."""
    options = _arguments(arguments)
    try:
        checkpoint = find_checkpoint(options.checkpoint)
    except MelissaError as error:
        print(f"melissa-inspect: {error}", file=sys.stderr)
        return 2
    found = contents(checkpoint, check=not options.quick)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(_lines(found)))
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
