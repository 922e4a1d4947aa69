"""Environment variables, relative paths and programs of a configuration."""

import os
import re
from pathlib import Path

import pytest

from melissa.exceptions import ConfigurationFileError
from melissa.launcher.config import load_config


def test_variables_are_expanded_in_the_paths_and_the_command(write, project, monkeypatch, tmp_path):
    monkeypatch.setenv("PLACE", str(tmp_path / "place"))
    monkeypatch.setenv("FILE", "server.py")
    config, _, _ = load_config(
        write(
            {
                "server_filename": "$FILE",
                "output_dir": "${PLACE}/results",
                "client_config.executable_command": "python3 $FILE",
                "mine": "$PLACE",
            }
        )
    )
    assert config["server_filename"] == str(project / "server.py")
    assert config["output_dir"] == str(tmp_path / "place" / "results")
    assert config["client_config"]["executable_command"] == f"python3 {project}/server.py"
    assert config["mine"] == "$PLACE"


@pytest.mark.parametrize("key", ["server_filename", "output_dir", "client_config.executable_command"])
def test_an_undefined_variable_is_named(write, monkeypatch, key):
    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
    with pytest.raises(
        ConfigurationFileError, match=rf"{re.escape(key)}: .*\$NOT_SET_ANYWHERE, not set here"
    ):
        load_config(write({key: "$NOT_SET_ANYWHERE/x"}))


def test_variables_of_a_job_and_of_preprocessing_are_left_to_its_shell(write, monkeypatch):
    monkeypatch.setenv("MELISSA_SIMU_ID", "17")
    command = "python3 -c pass $MELISSA_SIMU_ID"
    config, _, _ = load_config(write({"client_config.executable_command": command}))
    assert config["client_config"]["executable_command"] == command
    config, _, _ = load_config(
        write(
            {
                "client_config.executable_command": "$SOLVER --fast",
                "client_config.preprocessing_commands": ["source environment.sh"],
            }
        )
    )
    assert config["client_config"]["executable_command"] == "$SOLVER --fast"


def test_the_output_folder_has_strftime_codes_by_default(write, project):
    config, _, _ = load_config(write(without=("output_dir",)))
    assert re.fullmatch(rf"{project}/melissa-\d{{8}}T\d{{6}}", config["output_dir"])


def test_the_output_folder_of_a_running_study_is_taken_as_it_is(write, tmp_path):
    config, _, _ = load_config(write(without=("output_dir",)), output_dir=tmp_path / "made")
    assert config["output_dir"] == str(tmp_path / "made")


def test_an_output_folder_that_is_a_file_is_refused(write, project):
    (project / "results").touch()
    with pytest.raises(ConfigurationFileError, match=r"output_dir: .*results is there and is no folder"):
        load_config(write())


def test_a_missing_server_file_is_named_with_the_nearest_one(write):
    with pytest.raises(ConfigurationFileError, match=r'servr\.py is not there. Is "server\.py" meant'):
        load_config(write({"server_filename": "servr.py"}))


def test_programs_and_scripts_of_the_project_get_their_whole_path_and_data_does_not(write, project):
    solver = project / "solve it"
    solver.mkdir()
    program = project / "run"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (project / "mesh.dat").touch()
    config, _, _ = load_config(
        write(
            {
                "client_config.executable_command": "OMP_NUM_THREADS=2 ./run solver.py mesh.dat new.dat -v",
                "client_config.command_default_args": ["solver.py", "mesh.dat", 3],
            }
        )
    )
    client = config["client_config"]
    assert client["executable_command"] == (
        f"OMP_NUM_THREADS=2 {project}/run {project}/solver.py mesh.dat new.dat -v"
    )
    assert client["command_default_args"] == [f"{project}/solver.py", "mesh.dat", 3]


def test_a_program_that_path_finds_comes_before_a_file_of_its_name(write, project):
    (project / "python3").write_text("#!/bin/sh\n")
    (project / "python3").chmod(0o755)
    config, _, _ = load_config(write())
    assert config["client_config"]["executable_command"].startswith("python3 ")


@pytest.mark.parametrize("command", ["no-such-solver --fast", "./solver-not-built 3", "X=1 /nowhere/solver"])
def test_a_missing_solver_is_named(write, command):
    with pytest.raises(ConfigurationFileError, match=r'executable_command: the program ".*" is not there'):
        load_config(write({"client_config.executable_command": command}))


@pytest.mark.parametrize(
    "command", ["exec python3 solver.py", "time python3 solver.py", '"$SHELL" -c true', "(true)"]
)
def test_a_command_that_only_a_shell_can_judge_is_left_to_it(write, command):
    os.environ.setdefault("SHELL", "/bin/sh")
    load_config(write({"client_config.executable_command": command}))


def test_preprocessing_may_bring_the_solver(write):
    load_config(
        write(
            {
                "client_config.executable_command": "no-such-solver",
                "client_config.preprocessing_commands": ["module load solver"],
            }
        )
    )


def test_a_path_with_spaces_is_quoted_for_the_shell(write, project, tmp_path):
    spaced = tmp_path / "my project"
    project.rename(spaced)
    project.mkdir()
    file = write().rename(spaced / "study.json")
    config, _, _ = load_config(file)
    assert config["client_config"]["executable_command"] == f"python3 '{spaced}/solver.py'"
    assert Path(config["server_filename"]) == spaced / "server.py"
