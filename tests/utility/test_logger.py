"""The log: its lines, its levels, and a disk that is full."""

import logging
import re
import subprocess
import sys

import pytest

from melissa.utility.logger import configure_logger

ALL_LEVELS = """
import sys
from pathlib import Path
from melissa.utility.logger import configure_logger
logger = configure_logger(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "terminal")
logger.debug("a debug line")
logger.info("an info line with \\ud800 and ä")
logger.warning("a warning line")
logger.error("an error line")
"""


def run(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def logger():
    melissa = logging.getLogger("melissa")
    before = melissa.level, melissa.propagate
    yield configure_logger
    configure_logger(None, 1, terminal=False)
    melissa.level, melissa.propagate = before


def test_lines_start_with_date_and_time(tmp_path, logger):
    path = tmp_path / "study.log"
    logger(path, 3, terminal=False).info("created client.0.sh with parameters [1, 2]")
    line = path.read_text()
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO created client", line)
    assert line.count("[") == 1


@pytest.mark.parametrize(
    ("verbosity", "levels"), [(0, "ERROR"), (1, "WARNING ERROR"), (2, "INFO WARNING ERROR"), (3, None)]
)
def test_verbosity_chooses_the_levels(tmp_path, verbosity, levels):
    path = tmp_path / "study.log"
    result = run(ALL_LEVELS, path, verbosity, "file")
    assert result.returncode == 0
    assert result.stderr == ""
    found = [line.split()[2] for line in path.read_text().splitlines()]
    assert found == (levels or "DEBUG INFO WARNING ERROR").split()


def test_a_file_is_appended_to(tmp_path, logger):
    path = tmp_path / "study.log"
    for text in ("first", "second"):
        logger(path, 3, terminal=False).info(text)
    assert len(path.read_text().splitlines()) == 2


def test_the_terminal_has_a_verbosity_of_its_own(tmp_path, logger, capsys):
    log = logger(tmp_path / "study.log", 3, terminal=True, terminal_verbosity=1)
    log.info("for the file")
    log.warning("for both")
    assert "for the file" not in (shown := capsys.readouterr().err)
    assert "for both" in shown
    assert "for the file" in (tmp_path / "study.log").read_text()


@pytest.mark.parametrize("terminal", ["terminal", "file"])
def test_a_full_disk_is_told_once_and_the_log_goes_on_on_stderr(tmp_path, terminal):
    path = tmp_path / "study.log"
    path.symlink_to("/dev/full")
    result = run(ALL_LEVELS, path, 3, terminal)
    assert result.returncode == 0
    assert result.stderr.count(f"cannot write the log {path}: No space left on device") == 1
    assert "logging goes on on stderr" in result.stderr
    for level in ("a debug", "an info", "a warning", "an error"):
        assert result.stderr.count(f"{level} line") == 1


def test_a_file_that_cannot_be_opened_is_told_in_the_same_way(tmp_path):
    result = run(ALL_LEVELS, tmp_path / "nowhere" / "study.log", 1, "file")
    assert result.returncode == 0
    assert result.stderr.count("No such file or directory") == 1
    assert "an error line" in result.stderr


def test_a_full_disk_and_no_stderr_end_nothing(tmp_path):
    path = tmp_path / "study.log"
    path.symlink_to("/dev/full")
    code = "import os; os.close(2); os.open('/dev/full', os.O_WRONLY)\n" + ALL_LEVELS + "print('reached')"
    result = run(code, path, 3, "terminal")
    assert result.stdout == "reached\n"
