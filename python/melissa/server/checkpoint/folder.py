"""Where checkpoints lie: ``checkpoints/melissa/<batch, 8 digits>/rank<k>/``.

A rank's part is written under a temporary name and renamed when all of it is on the disk: a part that has its
name is whole. A checkpoint is complete when every rank's part has its name.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

__all__ = ["BUFFER_FILE", "MANIFEST_FILE", "CheckpointFolder", "sync_folder"]

BUFFER_FILE = "buffer.safetensors"
MANIFEST_FILE = "manifest.json"

KEPT = 2
"""Complete checkpoints that are kept: a damaged one is not to be the only one."""


def sync_folder(path: Path) -> None:
    """Return when the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class CheckpointFolder:
    """The checkpoints of a study under `root`, the folder ``checkpoints/melissa`` of its output."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def batches(self) -> list[int]:
        """Return the numbers of batches after which there is something, newest first."""
        if not self.root.is_dir():
            return []
        names = (path.name for path in self.root.iterdir() if path.is_dir())
        return sorted((int(name) for name in names if re.fullmatch(r"\d{8,}", name)), reverse=True)

    def of_batch(self, batch: int) -> Path:
        """Return the folder of a checkpoint."""
        return self.root / f"{batch:08d}"

    def of_rank(self, batch: int, rank: int) -> Path:
        """Return the folder of a rank's part."""
        return self.of_batch(batch) / f"rank{rank}"

    def ranks(self, batch: int) -> list[int]:
        """Return the ranks whose part is whole, ascending."""
        matches = (
            re.fullmatch(r"rank(\d+)", path.name) for path in self.of_batch(batch).iterdir() if path.is_dir()
        )
        return sorted(int(match[1]) for match in matches if match)

    def is_complete(self, batch: int, nb_ranks: int) -> bool:
        """Say whether every rank's part is whole."""
        return all(self.of_rank(batch, rank).is_dir() for rank in range(nb_ranks))

    # Writing.

    def begin(self, batch: int, rank: int) -> Path:
        """Make the folder in which a rank writes its part, under a temporary name."""
        unfinished = self._unfinished(batch, rank)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        return unfinished

    def commit(self, batch: int, rank: int) -> Path:
        """Give a rank's part its name, once its files are on the disk."""
        unfinished, final = self._unfinished(batch, rank), self.of_rank(batch, rank)
        sync_folder(unfinished)
        if final.exists():
            # Of a server that died after it and started from an older one.
            shutil.rmtree(final)
        os.rename(unfinished, final)
        sync_folder(final.parent)
        sync_folder(self.root)
        return final

    def abandon(self, batch: int, rank: int) -> None:
        """Remove what a rank has written of a part that is not to be."""
        shutil.rmtree(self._unfinished(batch, rank), ignore_errors=True)
        self._remove_if_empty(batch)

    def _unfinished(self, batch: int, rank: int) -> Path:
        return self.of_batch(batch) / f"rank{rank}.new"

    # Samples for validation, to which the manifests of several checkpoints refer.

    @property
    def validation(self) -> Path:
        """The folder of their files."""
        return self.root / "validation"

    def forget_validation(self, but: Collection[str] = ()) -> None:
        """Remove the files that no checkpoint refers to from which the study goes on, all `but` these."""
        for path in self.validation.glob("*"):
            if path.name not in but:
                path.unlink()

    # Removing; rank 0 does it for all.

    def prune(self, nb_ranks: int, begun: int) -> None:
        """Remove checkpoints older than that of batch `begun`, but for the newest `KEPT` complete ones.

        No rank writes an older one any more when the next is begun: it will never be complete.
        """
        batches = self.batches()
        kept = [batch for batch in batches if self.is_complete(batch, nb_ranks)][:KEPT]
        for batch in batches:
            if batch < begun and batch not in kept:
                self._remove(batch)

    def forget_newer(self, batch: int) -> None:
        """Remove what is newer than `batch`, from which the study goes on, and what was left half written."""
        for other in self.batches():
            if other > batch:
                self._remove(other)
        for unfinished in self.root.glob("*/rank*.new"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def forget_all(self) -> bool:
        """Remove every checkpoint; say whether there was one."""
        batches = self.batches()
        for batch in batches:
            self._remove(batch)
        return bool(batches)

    def put_aside(self) -> Path | None:
        """Rename the folder, none of whose checkpoints can be used; return its new name."""
        if not self.batches():
            return None
        aside = self.root.with_name(f"{self.root.name}.unusable")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(self.root, aside)
        return aside

    def _remove(self, batch: int) -> None:
        # Renamed first: no reader takes a half removed one for a checkpoint.
        doomed = self.root / f"removed-{batch:08d}"
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(self.of_batch(batch), doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _remove_if_empty(self, batch: int) -> None:
        folder = self.of_batch(batch)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
