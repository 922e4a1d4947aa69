"""Words for the ends of processes."""

import os
import subprocess
import venv
from pathlib import Path

import melissa
from melissa.utility.process import describe_exit, last_lines


def test_ends_are_told_in_words():
    assert describe_exit(3) == "ended with status 3"
    assert describe_exit(-11) == "was killed by signal 11 (SIGSEGV)"
    assert "SIGKILL" in describe_exit(-9)
    assert "memory" in describe_exit(-9)
    assert "unknown" in describe_exit(-99)
    assert "not known" in describe_exit(None)


def test_the_last_lines_are_those_at_the_end():
    text = "".join(f"line {number}\n" for number in range(100)) + "\n\n"
    assert last_lines(text, 2) == "line 98\nline 99"
    assert last_lines("", 5) == ""


def test_last_lines_are_as_a_terminal_would_show_them():
    text = "\x1b[31mred\x1b[0m\x07\r\n 10 %\r 50 %\r100 %\n\x1b]0;title\x07after\ttab\n"
    assert last_lines(text, 10) == "red\n100 %\nafter\ttab"


def test_jobs_find_the_python_of_a_virtual_environment_that_is_not_activated(tmp_path):
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    script = (
        "import os; from melissa.utility.process import find_own_interpreter_first;"
        "find_own_interpreter_first(); print(os.environ['PATH'])"
    )
    own = tmp_path / "venv" / "bin"
    package = str(Path(melissa.__file__).parents[1])
    environment = os.environ | {"PATH": f"/usr/bin:{own}:/bin", "PYTHONPATH": package}
    output = subprocess.check_output([own / "python", "-c", script], env=environment, text=True)
    assert output.strip() == f"{own}:/usr/bin:/bin"
