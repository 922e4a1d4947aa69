"""What several test files of server ranks use."""

import logging
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))


@pytest.fixture
def log(caplog, monkeypatch):
    """The records of the melissa logger, all levels."""
    logger = logging.getLogger("melissa")
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.DEBUG, logger="melissa")
    return caplog
