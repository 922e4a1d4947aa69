"""A whole study for each test."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from studies import Study


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    """Return a small study that would run to its end; a test changes a piece or two of it."""
    study = Study(tmp_path)
    yield study
    for pid in study.processes():
        os.kill(pid, signal.SIGKILL)
    for launcher in study.launchers:
        launcher.communicate()
