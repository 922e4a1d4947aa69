"""Studies of the launcher with a server that is a small script."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

import melissa

HERE = Path(__file__).parent
MARK = "MELISSA_TEST_STUDY"
SOON = 60.0
"""Seconds within which everything that a test waits for must have come: a loaded machine is slow."""


class Study:
    """One study: its folders, its launcher, and every process that belongs to it, however deep."""

    packages = os.pathsep.join([str(Path(melissa.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])

    def __init__(self, folder: Path) -> None:
        self.project = folder / "project"
        self.project.mkdir()
        self.output = folder / "output"
        self.config_path = self.project / "study.json"
        self.config_path.write_text('{"a": "verbatim", /* copy */ }')
        self.solver("exit 0")
        self.launcher: subprocess.Popen[str] | None = None
        self._mark = uuid.uuid4().hex

    def solver(self, commands: str) -> None:
        """Choose the shell commands that every client runs."""
        (self.output.parent / "solver.sh").write_text(commands + "\n")

    def config(self, character, server=None, **launcher_config) -> dict:
        """Return a complete configuration, whose server has the given character."""
        if server is None:
            script = [sys.executable, str(HERE / "fake_server.py"), *character.split()]
            server = {"preprocessing_commands": [f"exec {shlex.join(script)}"]}
        defaults = {
            "scheduler": "local",
            "job_limit": 3,
            "timer_delay": 5.0,
            "server_timeout": 60.0,
            "stop_timeout": 300.0,
            "fault_tolerance": False,
            "std_output": True,
            "verbosity": 3,
        }
        return {"server_config": server, "launcher_config": defaults | launcher_config}

    def start(
        self,
        character,
        *,
        overwrite=False,
        terminal=False,
        server=None,
        constants=(),
        environment=(),
        **launcher_config,
    ) -> subprocess.Popen[str]:
        """Start a launcher with that configuration."""
        arguments = {
            "config": self.config(character, server, **launcher_config),
            "config_path": str(self.config_path),
            "output_dir": str(self.output),
            "overwrite": overwrite,
            "terminal": terminal,
            "constants": dict(constants),
        }
        self.launcher = subprocess.Popen(
            [sys.executable, str(HERE / "run_launcher.py"), json.dumps(arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {MARK: self._mark, "PYTHONPATH": self.packages} | dict(environment),
        )
        return self.launcher

    def run(self, character, timeout=SOON, **changes) -> subprocess.CompletedProcess[str]:
        """Run a study to its end; nothing of it may be left then."""
        self.start(character, **changes)
        return self.wait(timeout)

    def wait(self, timeout=SOON) -> subprocess.CompletedProcess[str]:
        """Wait for the end of the launcher; nothing of the study may be left then."""
        stdout, stderr = self.launcher.communicate(timeout=timeout)
        assert self.processes() == []
        return subprocess.CompletedProcess([], self.launcher.returncode, stdout, stderr)

    @property
    def log(self) -> str:
        path = self.output / "melissa_launcher.log"
        return path.read_text() if path.exists() else ""

    @property
    def state(self) -> dict:
        return json.loads((self.output / ".melissa" / "study.json").read_text())

    @property
    def updates(self) -> list[dict]:
        return json.loads((self.output / "updates.json").read_text())

    def wait_for_log(self, text: str, number: int = 1, timeout: float = SOON) -> None:
        deadline = time.monotonic() + timeout
        while self.log.count(text) < number:
            assert time.monotonic() < deadline, f"{text!r} is not in the log:\n{self.log}"
            time.sleep(0.02)

    def processes(self) -> list[int]:
        wanted = f"{MARK}={self._mark}".encode()
        found = []
        for path in Path("/proc").iterdir():
            if path.name.isdecimal():
                try:
                    if wanted in (path / "environ").read_bytes().split(b"\0"):
                        found.append(int(path.name))
                except OSError:
                    continue
        return found

    def wait_for_processes(self, number: int) -> None:
        """Wait until `number` processes of the study, or more, are alive."""
        deadline = time.monotonic() + SOON
        while len(alive := self.processes()) < number:
            assert time.monotonic() < deadline, alive
            time.sleep(0.02)

    def wait_for_no_process(self) -> None:
        deadline = time.monotonic() + SOON
        while left := self.processes():
            assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
            time.sleep(0.02)

    def supervisor(self) -> int:
        for pid in self.processes():
            if b"supervisor.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        raise AssertionError("no supervisor is alive")


@pytest.fixture
def study(tmp_path):
    study = Study(tmp_path)
    yield study
    for pid in study.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    if study.launcher is not None:
        study.launcher.communicate()
