"""``melissa-launcher`` up to the point where a study would start."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from melissa.launcher import example
from melissa.launcher.__main__ import main
from melissa.launcher.options import options, print_options


def test_a_dry_run_says_what_would_be_run_and_makes_nothing(write, project, capsys):
    file = write(
        {"study_options.nb_time_steps": 7, "client_config.preprocessing_commands": ["module load x"]}
    )
    before = sorted(project.rglob("*"))
    assert main(["--config_name", str(file), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"{file} is valid" in shown
    assert f"module load x; python3 {project}/solver.py <2 drawn parameters>" in shown
    assert f"Server of {project}/server.py" in shown
    assert "10 simulations x 7 time steps = 70 samples" in shown
    assert sorted(project.rglob("*")) == before


def test_a_dry_run_says_how_many_ranks_the_server_has(write, capsys):
    ranks = {"launcher_config.scheduler": "openmpi", "launcher_config.scheduler_arg_server": ["-n", "2"]}
    assert main(["--config_name", str(write(ranks)), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "server.py, 2 ranks\n" in shown
    assert "training starts at 20 on each rank" in shown


def test_a_dry_run_imports_neither_torch_nor_the_server_nor_the_extension(write):
    code = (
        "import sys; from melissa.launcher.__main__ import main; status = main(sys.argv[1:]); "
        "print(sorted({'torch', 'scipy', 'mpi4py', 'server', 'melissa._melissa'} & set(sys.modules))); "
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "-c", str(write()), "--dry-run"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_wrong_configuration_is_told_without_a_traceback_and_ends_with_status_2(write, capsys):
    assert main(["-c", str(write({"dl_config.batch_size": 0}))]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "dl_config.batch_size: 0 given, expected a whole number, at least 1." in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "which study?"),
        (["-c", "nothing"], 'No configuration "nothing"'),
        (["-c", "x", "--project_dir", "/nowhere/at/all"], "no such folder"),
        (["--example", "heat", "x", "--print-options"], "not allowed with"),
    ],
)
def test_a_wrong_command_line_ends_with_status_2(arguments, told, capsys):
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert told in capsys.readouterr().err


def test_the_version_is_printed(capsys, monkeypatch):
    monkeypatch.setattr("melissa.__version__", "1.2.3", raising=False)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "melissa-launcher 1.2.3\n"


def test_options_are_plain_text_in_a_file_and_a_table_on_a_terminal():
    plain, table = io.StringIO(), io.StringIO()
    print_options(Console(file=plain))
    print_options(Console(file=table, force_terminal=True, width=200))
    for option in options():
        assert f"{option.path}\n    {option.kind}; default: {option.default}\n" in plain.getvalue()
        assert option.path in table.getvalue()
    assert "\x1b" not in plain.getvalue()


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """Return the folder of the examples of an installation that has one."""
    heat = tmp_path / "installed" / "heat"
    (heat / "data").mkdir(parents=True)
    (heat / "study.json").write_text("{}")
    (heat / "solver.py").write_text("pass\n")
    (heat / "data" / "mesh.txt").write_text("1 2 3\n")
    (heat / "__pycache__").mkdir()
    (heat / "__pycache__" / "solver.pyc").touch()
    monkeypatch.setattr(example, "EXAMPLES", heat.parent)
    return heat.parent


def test_an_example_is_copied_with_what_to_type_next(installed, tmp_path, capsys):
    folder = tmp_path / "mine" / "heat"
    assert main(["--example", "heat", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert f"cd {folder}" in shown
    assert "melissa-launcher --config_name study.json" in shown
    copied = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert copied == {"study.json", "solver.py", "data/mesh.txt"}


def test_an_example_that_is_there_already_is_left_and_a_changed_one_is_refused(installed, tmp_path, capsys):
    folder = tmp_path / "heat"
    assert main(["--example", "heat", str(folder)]) == 0
    (folder / "results").mkdir()
    assert main(["--example", "heat", str(folder)]) == 0
    (folder / "solver.py").write_text("mine\n")
    assert main(["--example", "heat", str(folder)]) == 1
    assert "solver.py is there and was changed" in capsys.readouterr().err
    assert (folder / "solver.py").read_text() == "mine\n"


def test_an_example_is_not_copied_among_other_files(installed, tmp_path, capsys):
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    assert main(["--example", "heat", str(folder)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    assert main(["--example", "heat", str(folder / "thesis.tex")]) == 1
    assert "is no folder" in capsys.readouterr().err


def test_an_unknown_example_is_told_with_the_nearest_one(installed, tmp_path, capsys):
    assert main(["--example", "haet", str(tmp_path / "x")]) == 1
    assert 'Is "heat" meant?' in capsys.readouterr().err
    assert main(["--list-examples"]) == 0
    assert capsys.readouterr().out == "heat\n"
