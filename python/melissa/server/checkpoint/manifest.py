"""What stands beside a rank's part of a checkpoint: what it is of, its files with their checksums."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from melissa._melissa import CheckpointFile
from melissa.exceptions import CheckpointError
from melissa.server.checkpoint.folder import MANIFEST_FILE

__all__ = ["FORMAT_VERSION", "Manifest", "configuration_fingerprint"]

FORMAT_VERSION = 1
_FORMAT = "melissa checkpoint"


def configuration_fingerprint(config_dict: dict[str, Any]) -> str:
    """Return a digest of what a configuration says about the study and its training."""
    relevant = {name: config_dict.get(name) for name in ("study_options", "dl_config")}
    text = json.dumps(relevant, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """One rank's part of a checkpoint.

    `batch` counts the batches trained, `progress` has the counters of the rank's training, `files` size and
    CRC-32C of each file. `study` is rank 0's: the simulations, and what was drawn for them.
    """

    batch: int
    rank: int
    nb_ranks: int
    study_epoch: int
    written: str
    """When, as ISO 8601."""
    configuration: str
    progress: dict[str, Any]
    files: dict[str, tuple[int, int]]
    study: dict[str, Any] | None = field(default=None)

    def write(self, folder: Path) -> None:
        """Write the manifest into the folder of the rank's part, down to the disk."""
        content = {"format": _FORMAT, "version": FORMAT_VERSION} | asdict(self)
        content["files"] = {
            name: {"bytes": size, "crc32c": f"{checksum:08x}"}
            for name, (size, checksum) in self.files.items()
        }
        content["sha256"] = _digest(json.loads(json.dumps(content)))
        with (folder / MANIFEST_FILE).open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a rank's part; `CheckpointError` says what is wrong with it."""
        path = folder / MANIFEST_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"checkpoint {path}: {error.strerror}") from None
        except ValueError as error:
            raise CheckpointError(f"checkpoint {path} is damaged: it is no JSON: {error}") from None
        if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
            raise CheckpointError(f"checkpoint {path} is damaged: it is no manifest of a checkpoint")
        version = content.pop("version", None)
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"checkpoint {path} has version {version} of the format; this Melissa reads version "
                f"{FORMAT_VERSION}"
            )
        digest = content.pop("sha256", None)
        if digest != _digest({"format": _FORMAT, "version": version} | content):
            raise CheckpointError(f"checkpoint {path} is damaged: its content is not what was written")
        try:
            files = {
                name: (int(known["bytes"]), int(known["crc32c"], 16))
                for name, known in content.pop("files").items()
            }
            return cls(files=files, **content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"checkpoint {path} is damaged: it lacks a part or has one more: {error}"
            ) from None

    def check_files(self, folder: Path) -> None:
        """Compare every file with size and checksum; `CheckpointError` names the one that differs."""
        for name, known in self.files.items():
            path = folder / name
            found = CheckpointFile.measure(path)
            if found[0] != known[0]:
                raise CheckpointError(
                    f"checkpoint {path} is damaged: it has {found[0]} bytes, and {known[0]} were written"
                )
            if found != known:
                raise CheckpointError(
                    f"checkpoint {path} is damaged: the checksum of its bytes is {found[1]:#010x}, and it "
                    f"was {known[1]:#010x} when they were written"
                )
