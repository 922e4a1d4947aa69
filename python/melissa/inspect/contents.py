"""What is in a checkpoint, as plain data."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from melissa._melissa import CheckpointFile
from melissa.exceptions import CheckpointError
from melissa.server.checkpoint.folder import BUFFER_FILE, CheckpointFolder
from melissa.server.checkpoint.manifest import Manifest

__all__ = ["contents", "find_checkpoint"]


def find_checkpoint(path: Path) -> Path:
    """Return the folder of a checkpoint, all ranks of it, that `path` means.

    It may be that folder or a rank's part in it, and any folder above, in which the newest one counts:
    ``checkpoints/melissa``, ``checkpoints``, a study's output folder. `CheckpointError` when there is none.
    """
    if not path.exists():
        raise CheckpointError(f"there is no {path.absolute()}")
    if path.is_file():
        path = path.parent
    if re.fullmatch(r"rank\d+(\.new)?", path.name):
        path = path.parent
    if re.fullmatch(r"\d{8,}", path.name):
        return path
    for root in (path, path / "melissa", path / "checkpoints" / "melissa"):
        folder = CheckpointFolder(root)
        if batches := folder.batches():
            whole = [batch for batch in batches if folder.ranks(batch)]
            return folder.of_batch((whole or batches)[0])
    raise CheckpointError(
        f"{path.absolute()} has no checkpoint: a folder like checkpoints/melissa/00000300, or one above it, "
        "was expected"
    )


def contents(checkpoint: Path, *, check: bool = True) -> dict[str, Any]:
    """Return what is in the checkpoint of that folder.

    "problems" has in words what is wrong with it, and is empty where a server could go on from it. With
    `check` every byte is compared with its checksum.
    """
    folder = CheckpointFolder(checkpoint.parent)
    batch = int(checkpoint.name)
    problems: list[str] = []
    ranks: list[dict[str, Any]] = []
    manifests: list[Manifest] = []
    for_validation: set[int] = set()
    for rank in folder.ranks(batch):
        part = folder.of_rank(batch, rank)
        try:
            manifest = Manifest.read(part)
            manifests.append(manifest)
            if check:
                manifest.check_files(part)
            if manifest.study is not None:  # rank 0's, which is the first
                records = manifest.study.get("validation", {}).get("simulations", [])
                for_validation = {record["id"] for record in records}
            ranks.append(_rank(part, manifest, for_validation))
        except CheckpointError as error:
            problems.append(str(error))
    nb_ranks = max((manifest.nb_ranks for manifest in manifests), default=0)
    present = {manifest.rank for manifest in manifests}
    missing = [rank for rank in range(nb_ranks) if rank not in present]
    if not folder.ranks(batch):
        problems.append(f"checkpoint {checkpoint} has no rank's part that is whole")
    elif missing:
        text = ", ".join(map(str, missing))
        problems.append(f"checkpoint {checkpoint} lacks the parts of ranks {text} of {nb_ranks}")
    result: dict[str, Any] = {
        "path": str(checkpoint.absolute()),
        "batch": batch,
        "nb_ranks": nb_ranks,
        "checked": check,
        "problems": problems,
    }
    if manifests:
        first = manifests[0]
        result |= {
            "written": first.written,
            "study_epoch": first.study_epoch,
            "configuration": first.configuration,
            "seconds": round(first.progress["seconds"], 3),
        }
        study = next((manifest.study for manifest in manifests if manifest.study is not None), None)
        if study is not None:
            result["simulations"] = _simulations(study)
            if (validation := study.get("validation")) is not None:
                result["validation"] = _validation(validation, folder.validation, check)
    result["bytes"] = sum(sum(part["files"].values()) for part in ranks)
    result["ranks"] = ranks
    return result


def _simulations(study: dict[str, Any]) -> dict[str, Any]:
    statuses = Counter(record["status"] for record in study["simulations"])
    return {
        "asked_for": len(study["simulations"]),
        "parameters_drawn": len(study["draws"]),
        "resubmitted": study["nb_resubmitted"],
        "statuses": dict(sorted(statuses.items())),
    }


def _validation(known: dict[str, Any], folder: Path, check: bool) -> dict[str, Any]:
    """Return what there is of simulations for validation; "lost" says which of their samples are not there.

    That is no problem for a server that goes on: it runs them again.
    """
    lost = []
    for name, (size, checksum) in known["files"].items():
        try:
            CheckpointFile(folder / name, (size, checksum) if check else None)
        except CheckpointError as error:
            lost.append(str(error))
    statuses = Counter(record["status"] for record in known["simulations"])
    return {
        "asked_for": len(known["simulations"]),
        "statuses": dict(sorted(statuses.items())),
        "files": {name: size for name, (size, _) in known["files"].items()},
        "lost": lost,
    }


def _rank(part: Path, manifest: Manifest, for_validation: set[int]) -> dict[str, Any]:
    file = CheckpointFile(part / BUFFER_FILE)
    known = [known for known in file.simulations if known[0] not in for_validation]
    return {
        "rank": manifest.rank,
        "buffer": file.buffer | {"population": file.population},
        "fields": [{"name": name, "size": size, "dtype": dtype} for name, size, dtype in file.fields],
        "waiting_batches": file.pending,
        "ledger": file.ledger,
        "simulations_finished": sum(is_finished for _, _, _, is_finished, _ in known),
        "simulations_known": len(known),
        "batches": manifest.progress["batches"],
        "samples_delivered": manifest.progress["samples_delivered"],
        "files": {name: size for name, (size, _) in manifest.files.items()},
    }
