"""A small study that is valid: each test breaks, or adds, one thing."""

import copy
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

STUDY: dict[str, Any] = {
    "server_filename": "server.py",
    "server_class": "Server",
    "output_dir": "results",
    "study_options": {"field_names": ["temperature"], "parameter_sweep_size": 10, "nb_parameters": 2},
    "dl_config": {"batch_size": 5, "buffer": "Reservoir", "buffer_size": 50, "per_server_watermark": 20},
    "client_config": {"executable_command": "python3 solver.py"},
}

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Undo what the launcher does to the logger, which `caplog` needs."""
    logger = logging.getLogger("melissa")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project's folder with a server file and a solver."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "server.py").write_text("class Server: ...\n")
    (folder / "solver.py").write_text("print('solved')\n")
    return folder


@pytest.fixture
def valid() -> dict[str, Any]:
    """Return the valid study."""
    return copy.deepcopy(STUDY)


@pytest.fixture
def write(project: Path) -> Write:
    """Return a function that writes the valid study, with changes by path, and returns the file.

    ``write({"dl_config.batch_size": 0})`` sets a value, ``write(without=("dl_config",))`` removes one.
    """

    def write_study(changes: dict[str, Any] | None = None, *, without: tuple[str, ...] = ()) -> Path:
        study = copy.deepcopy(STUDY)
        for path, value in (changes or {}).items():
            *sections, key = path.split(".")
            section = study
            for name in sections:
                section = section.setdefault(name, {})
            section[key] = value
        for path in without:
            *sections, key = path.split(".")
            section = study
            for name in sections:
                section = section[name]
            del section[key]
        file = project / "study.json"
        file.write_text(json.dumps(study))
        return file

    return write_study
