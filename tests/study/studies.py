"""Whole studies, in a folder of their own: made of pieces, run by a real launcher, watched from outside."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import melissa

PIECES = Path(__file__).with_name("project")
MARK = "MELISSA_TEST_STUDY"
SOON = 60.0
"""Seconds within which everything that a test waits for must have come: a loaded machine is slow."""

IMPATIENT = """
import sys
from melissa.launcher import launcher
from melissa.launcher.__main__ import main
{}
sys.exit(main())
"""

SOLVER = "solve(5)"
SERVER = "class Server(PlainServer): pass"

NB_SIMULATIONS, NB_TIME_STEPS = 4, 5


class Study:
    """A study: its folders, its configuration, its launcher, and every process of it, however deep."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "project"
        shutil.copytree(PIECES, self.project, ignore=shutil.ignore_patterns("__pycache__"))
        self.output = folder / "output"
        self.config: dict[str, Any] = {
            "server_filename": "server.py",
            "server_class": "Server",
            "output_dir": str(self.output),
            "study_options": {
                "field_names": ["temperature"],
                "parameter_sweep_size": NB_SIMULATIONS,
                "nb_parameters": 2,
                "nb_time_steps": NB_TIME_STEPS,
                "simulation_timeout": 50.0,
            },
            "dl_config": {"buffer": "FIFO", "buffer_size": 20, "batch_size": 4},
            "launcher_config": {"job_limit": 3, "timer_delay": 0.1},
            "client_config": {"executable_command": shlex.join([sys.executable, "solver.py"])},
        }
        self.config_text = ""
        """What stands in the configuration's file, where it is to be no valid JSON."""
        self.launcher_constants: dict[str, float] = {}
        """Constants of the launcher that a test makes small."""
        self.launchers: list[subprocess.Popen[str]] = []
        self.python = sys.executable
        """What runs the launcher, and so the server."""
        self.patience = SOON
        """Seconds for each wait; TensorFlow alone takes many of them to be imported on a loaded machine."""
        self._mark = uuid.uuid4().hex
        self.solver(SOLVER)
        self.server(SERVER)

    # The pieces.

    def solver(self, code: str) -> None:
        """Choose what every client runs: code on top of ``solving.py``."""
        text = "import os, signal, sys, time\nfrom solving import *\n\n" + textwrap.dedent(code) + "\n"
        (self.project / "solver.py").write_text(text)

    def server(self, code: str, base: str = "plain") -> None:
        """Choose the server: code with a class ``Server``, on top of a file of `PIECES`."""
        text = f"import numpy as np\nfrom {base} import *\n\n" + textwrap.dedent(code) + "\n"
        (self.project / "server.py").write_text(text)

    def configure(self, changes: dict[str, Any]) -> None:
        """Change the configuration: ``{"dl_config.buffer": "FIRO"}``; None removes a key."""
        for path, value in changes.items():
            *sections, key = path.split(".")
            section = self.config
            for name in sections:
                section = section.setdefault(name, {})
            if value is None:
                del section[key]
            else:
                section[key] = value

    # Running it.

    @property
    def config_path(self) -> Path:
        return self.project / "study.json"

    def environment(self) -> dict[str, str]:
        """Return an environment for processes of the study: they find this `melissa`, and are found."""
        packages = [str(Path(melissa.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        return os.environ | {MARK: self._mark, "PYTHONPATH": os.pathsep.join(filter(None, packages))}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the launcher."""
        text = "// a study of a test\n" + json.dumps(self.config, indent=1)
        self.config_path.write_text(self.config_text or text)
        constants = "".join(f"launcher.{name} = {value}\n" for name, value in self.launcher_constants.items())
        program = ["-c", IMPATIENT.format(constants)] if constants else ["-m", "melissa.launcher"]
        command = [self.python, *program, "--config_name", str(self.config_path)]
        launcher = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(),
            cwd=self.project,
        )
        self.launchers.append(launcher)
        return launcher

    def wait(self, launcher: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        """Wait for the end of a launcher that ends by itself; no process of its study may be left then."""
        try:
            stdout, stderr = launcher.communicate(timeout=self.patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the study hangs\n{self.logs()}") from None
        left = [other for other in self.launchers if other.poll() is None]
        assert left or self.processes() == []
        return subprocess.CompletedProcess(launcher.args, launcher.returncode, stdout, stderr)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the study to its end."""
        return self.wait(self.start(*arguments))

    def succeed(self) -> subprocess.CompletedProcess[str]:
        """Run the study to its good end; its ledger balances."""
        result = self.run()
        assert result.returncode == 0, f"{result.stderr}\n{self.logs()}"
        self.balance()
        return result

    def fail(self) -> str:
        """Run the study to its bad end; return what stood on the launcher's terminal about it."""
        result = self.run()
        assert result.returncode != 0, f"{result.stderr}\n{self.logs()}"
        return result.stderr

    # Looking at it.

    def wait_until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait until something has happened while the study runs."""
        deadline = time.monotonic() + self.patience
        while not condition():
            running = any(launcher.poll() is None for launcher in self.launchers)
            assert running, f"the study ended before {what}\n{self.logs()}"
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{self.logs()}"
            time.sleep(0.02)

    def wait_for_mark(self, name: str) -> None:
        """Wait until a solver has set a mark."""
        self.wait_until((self.output / name).exists, f"the mark {name}")

    def wait_for_log(self, name: str, text: str) -> None:
        """Wait until a log has a text."""
        self.wait_until(lambda: text in self.read(name), f"{text!r} in {name}")

    def set_mark(self, name: str) -> None:
        """Set a mark that a solver waits for."""
        (self.output / name).touch()

    def read(self, name: str) -> str:
        """Return the content of a file of the output folder; nothing where there is no such file."""
        path = self.output / name
        return path.read_text() if path.exists() else ""

    def logs(self) -> str:
        """Return all that the study has said."""
        names = ["melissa_launcher.log", "melissa_server_0.log"]
        names += sorted(f"stdout/{path.name}" for path in (self.output / "stdout").glob("*"))
        return "\n".join(f"---- {name}\n{self.read(name)}" for name in names)

    @property
    def launcher_log(self) -> str:
        return self.read("melissa_launcher.log")

    @property
    def server_log(self) -> str:
        return self.read("melissa_server_0.log")

    @property
    def report(self) -> dict[str, Any]:
        """The content of ``study_report.json``."""
        return json.loads((self.output / "study_report.json").read_text())

    @property
    def seen(self) -> dict[str, Any]:
        """What the server class noted down."""
        return json.loads((self.output / "seen.json").read_text())

    def counts(self) -> dict[tuple[int, int], int]:
        """Return how many times the training step got each (simulation, time step)."""
        return {(simulation, step): count for simulation, step, count in self.seen["samples"]}

    def balance(self) -> dict[str, Any]:
        """Check the ledger's sum; return the ledger."""
        for figures in (self.report, *self.report["ranks"]):
            ledger = figures["ledger"]
            assert ledger["declared"] == ledger["trained"] + sum(ledger["dropped"].values()), ledger
        return self.report["ledger"]

    def expect_ledger(self, declared: int, *, trained: int | None = None, **dropped: int) -> None:
        """Check the ledger: all is trained unless the arguments say otherwise."""
        ledger = self.balance()
        reasons = {"client_failed": 0, "stopped_early": 0, "untrained": 0} | dropped
        trained = declared - sum(dropped.values()) if trained is None else trained
        assert (ledger["declared"], ledger["trained"]) == (declared, trained), ledger
        assert ledger["dropped"] == reasons

    # Its processes.

    def processes(self) -> list[int]:
        """Return all live processes of the study, by a mark in their environment."""
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

    def process(self, word: str) -> int:
        """Return the process of the study that has `word` in its command line."""
        for pid in self.processes():
            if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
        raise AssertionError(f"no process of the study runs {word}")

    def wait_for_no_process(self) -> None:
        """Wait until nothing of the study is left."""
        deadline = time.monotonic() + self.patience
        while left := self.processes():
            assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
            time.sleep(0.02)
