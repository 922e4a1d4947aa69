"""The output folder of a study: who may use it, what is in it, what of it is the study's own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from melissa.exceptions import FatalError
from melissa.launcher.json_file import read_json
from melissa.utility.study_key import create_study_key

__all__ = ["StudyFolder"]

logger = logging.getLogger("melissa")

# What a study writes, folder by folder; everything else in its output folder is the user's.
_OWN_FILES = (
    (".", r"melissa_launcher\.log|melissa_server_\d+\.log|study_report\.json"),
    ("stdout", r"server\.(out|err)|simulation\d+\.(out|err)"),
    ("client_scripts", r"client\.\d+\.sh"),
    ("tensorboard/gpu_*", r"events\.out\.tfevents\..*|data\.pkl"),
    (".melissa", r"study\.json|key|server\.sh|rank\d+\.\d+\.(started|in_mpi)"),
)
_OWN_TREES = ("checkpoints/melissa",)
_OWN_FOLDERS = ("stdout", "client_scripts", "tensorboard/gpu_*", "tensorboard")


class StudyFolder:
    """The output folder of one study, locked while the study lives; one that has not finished goes on there.

    Its own subfolder ``.melissa`` holds the lock, the study's key while it runs, and ``study.json``:
    whether the study is running, finished or failed, since when, and why.
    """

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is made or read before `open`."""
        self.path = path
        self.stdout = path / "stdout"
        self.client_scripts = path / "client_scripts"
        self.log = path / "melissa_launcher.log"
        self.own = path / ".melissa"
        self.key = self.own / "key"
        self._state_file = self.own / "study.json"
        self._lock: int | None = None
        self._state: dict[str, Any] = {}
        self.resumed: str | None = None
        """Which study goes on here, in words; None for a new one."""

    def open(self, config_path: Path, *, overwrite: bool) -> None:
        """Make the folder, lock it, and put a copy of the configuration into it.

        A study that has not finished goes on, in its next epoch, unless `overwrite` is given: then, as for a
        finished one, its own files are replaced and no others.

        `FatalError` when another study lives in the folder, when it holds the results of a finished one and
        `overwrite` is not given, when an unfinished one had another configuration, or when the folder cannot
        be written.
        """
        try:
            self.own.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._take_lock()
                self._begin(config_path, overwrite)
            except BaseException:  # whatever it is: a folder that is not used must not stay locked
                self.close()
                raise
        except OSError as error:
            raise FatalError(
                f"cannot use the output folder {self.path}: {error.filename or ''}: {error.strerror}"
            ) from error

    def _begin(self, config_path: Path, overwrite: bool) -> None:
        earlier = self._read_state()
        if earlier is not None and not overwrite:
            self._resume(earlier, config_path)
            return
        if earlier is not None:
            self._remove_own_files()
            self._remove_copy(earlier.get("configuration_copy"), config_path)
        copy = self._copy_configuration(config_path)
        self._start({"epoch": 1, "started": _now(), "configuration_copy": copy})

    def _resume(self, earlier: dict[str, Any], config_path: Path) -> None:
        """Go on with the study that the folder holds."""
        epoch = earlier.get("epoch")
        if earlier.get("state") == "finished" or not isinstance(epoch, int):
            raise FatalError(self._refusal(earlier))
        copy = earlier.get("configuration_copy")
        if isinstance(copy, str) and Path(copy).name == copy:
            self._check_same_study(self.path / copy, config_path)
        self.resumed = (
            f"start {epoch + 1} of the study that was started {earlier.get('started')}: it {_how(earlier)}, "
            "and goes on from its newest checkpoint (--overwrite would begin anew)"
        )
        self._start({**earlier, "epoch": epoch + 1})

    def _start(self, state: dict[str, Any]) -> None:
        """Write down that a study runs here."""
        self.stdout.mkdir(exist_ok=True)
        self.client_scripts.mkdir(exist_ok=True)
        here = {"host": socket.gethostname(), "pid": os.getpid()}
        self._state = {**state, "state": "running", "ended": None, "reason": "", **here}
        self._write_state()

    def _check_same_study(self, copy: Path, config_path: Path) -> None:
        """Raise `FatalError` if the configuration differs from the copy in more than how jobs are started."""
        if not copy.is_file() or copy.read_bytes() == config_path.read_bytes():
            return
        before, now = (_without_jobs(read_json(path)[0]) for path in (copy, config_path))
        if changed := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
            raise FatalError(
                f"the output folder {self.path} holds an unfinished study, whose configuration ({copy}) "
                f"differs from {config_path} in {', '.join(changed)}: it cannot go on with that. Start it "
                "with its own one, choose another output_dir, or begin anew with --overwrite."
            )

    def create_key(self) -> bytes:
        """Make the study's key; it is in the file `key` until `conclude`."""
        return create_study_key(self.key)

    @property
    def lock(self) -> int:
        """The locked descriptor: who holds a copy of it keeps other studies out of the folder."""
        assert self._lock is not None
        return self._lock

    @property
    def epoch(self) -> int:
        """How many times the study's server was started."""
        return int(self._state["epoch"])

    def begin_epoch(self) -> int:
        """Write down that the server is started once more; return the new epoch."""
        self._state["epoch"] = self.epoch + 1
        self._write_state()
        return self.epoch

    def conclude(self, state: str, reason: str = "") -> None:
        """Write down how the study ended ("finished" or "failed"), and remove its key.

        On a full disk this is logged and no error: the study has ended as it has.
        """
        with contextlib.suppress(OSError):
            self.key.unlink(missing_ok=True)
        self._state |= {"state": state, "ended": _now(), "reason": reason}
        try:
            self._write_state()
        except OSError as error:
            logger.error(f"cannot write {self._state_file}, the study is {state}: {error.strerror}")

    def close(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        path = self.own / "lock"
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 4096, 0)
            self.close()
            raise FatalError(self._locked(holder)) from None
        except OSError as error:
            logger.warning(
                f"the file system of {self.path} has no locks ({error.strerror}): "
                "take care yourself that no second study is started there"
            )
        os.ftruncate(self._lock, 0)
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}).encode()
        os.pwrite(self._lock, holder, 0)

    def _locked(self, holder: bytes) -> str:
        try:
            found = json.loads(holder)
            pid, host, since = int(found["pid"]), str(found["host"]), str(found["since"])
        except (ValueError, KeyError, TypeError):
            return f"a live study uses the output folder {self.path} (just started)"
        if host == socket.gethostname() and not Path(f"/proc/{pid}").exists():
            return (
                f"the output folder {self.path} is still in use: its launcher (process {pid}, since {since}) "
                "is gone, and what it had started is being ended. Try again in a few seconds."
            )
        return (
            f"a live study uses the output folder {self.path}: the launcher is process {pid} on {host}, "
            f"since {since}. Wait for it, end it (kill {pid} on {host}), or choose another output_dir."
        )

    def _read_state(self) -> dict[str, Any] | None:
        """Return what is known of an earlier study in this folder; None when there was none."""
        try:
            state = json.loads(self._state_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            state = None
        return state if isinstance(state, dict) else {}

    def _refusal(self, earlier: dict[str, Any]) -> str:
        started, ended = earlier.get("started", "at an unknown time"), earlier.get("ended")
        advice = (
            "Choose another output_dir, or start with --overwrite: it removes the files of that study and "
            "leaves all others alone."
        )
        if earlier.get("state") == "finished":
            return (
                f"the output folder {self.path} holds the results of a study that ran from {started} to "
                f"{ended} and finished. {advice}"
            )
        return (
            f"the output folder {self.path} holds an unfinished study, which cannot be resumed: its "
            f"{self._state_file} is damaged. {advice}"
        )

    def _own_files(self) -> Iterator[Path]:
        for folder, names in _OWN_FILES:
            for directory in self.path.glob(folder) if "*" in folder else [self.path / folder]:
                if directory.is_dir():
                    yield from (path for path in directory.iterdir() if re.fullmatch(names, path.name))

    def _remove_own_files(self) -> None:
        for path in list(self._own_files()):
            path.unlink(missing_ok=True)
        for tree in _OWN_TREES:
            shutil.rmtree(self.path / tree, ignore_errors=True)
        for pattern in _OWN_FOLDERS:
            for folder in self.path.glob(pattern):
                # A folder with a file of the user's in it stays.
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _remove_copy(self, name: object, config_path: Path) -> None:
        """Remove the earlier study's copy of its configuration, unless this study starts from that."""
        if isinstance(name, str) and Path(name).name == name:
            copy = self.path / name
            if copy.is_file() and not copy.samefile(config_path):
                copy.unlink()

    def _copy_configuration(self, config_path: Path) -> str | None:
        """Copy the configuration under its own name; return that, or None when it is in the folder itself."""
        copy = self.path / config_path.name
        if copy.exists():
            if copy.samefile(config_path) or copy.read_bytes() == config_path.read_bytes():
                return None
            raise FatalError(
                f"cannot copy the configuration into the output folder: {copy} is there already, differs "
                f"from {config_path}, and was written by no study that is known here. Rename one of the two."
            )
        shutil.copyfile(config_path, copy)
        return copy.name

    def _write_state(self) -> None:
        temporary = self._state_file.with_suffix(".json.new")
        temporary.write_text(json.dumps(self._state, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self._state_file)


def _how(earlier: dict[str, Any]) -> str:
    """Say how an unfinished study ended."""
    return f"failed ({earlier.get('reason')})" if earlier.get("state") == "failed" else "did not end properly"


def _without_jobs(config: dict[str, Any]) -> dict[str, Any]:
    """Return what makes a study this one and no other: how its jobs are started may change."""
    return {key: value for key, value in config.items() if key not in ("launcher_config", "server_config")}


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S%z")
