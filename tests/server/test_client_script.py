"""The scripts that run a client, run by a real shell."""

import os
import subprocess

import numpy as np
import pytest

from melissa.server.client_script import ClientScripts, command_line_token


@pytest.mark.parametrize(
    ("parameter", "token"),
    [
        (1, "1"),
        (np.int64(-3), "-3"),
        (1.0, "1.0"),
        (1e-5, "0.00001"),
        (1e22, "10000000000000000000000.0"),
        (0.1, "0.1"),
        (np.float32(0.1), "0.1"),
        (-273.15, "-273.15"),
        (float("nan"), "nan"),
        ("'two words'", "'two words'"),
    ],
)
def test_a_parameter_is_written_plainly(parameter, token):
    assert command_line_token(parameter) == token


def test_a_number_that_is_read_back_is_the_number_that_was_drawn():
    for number in np.random.default_rng(0).normal(scale=1e3, size=200):
        assert float(command_line_token(number)) == number


def run(scripts, tokens=(), simulation_id=0, **environment):
    path = scripts.write(simulation_id, list(tokens))
    base = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.run([path], env=base | environment, cwd="/", capture_output=True, text=True, timeout=60)


def test_the_solver_gets_its_arguments_in_the_output_folder(tmp_path):
    scripts = ClientScripts(tmp_path, "printf '%s\\n'", ["--fixed", 3])
    result = run(scripts, ["1.5", "'two words'"], simulation_id=12)
    assert result.stdout.splitlines() == ["--fixed", "3", "1.5", "two words"]
    assert scripts.path(12) == tmp_path / "client_scripts" / "client.12.sh"


def test_preprocessing_shares_the_solvers_shell(tmp_path):
    (tmp_path / "sub").mkdir()
    commands = ["cd sub", "export FLAVOUR=salt", "false", ". no-such-file", "unknown-command-of-nobody"]
    result = run(
        ClientScripts(tmp_path, "echo $(pwd) $FLAVOUR $MELISSA_SIMU_ID $MELISSA_SIM_ID", [], commands)
    )
    assert result.returncode == 0
    assert result.stdout.split() == [str(tmp_path / "sub"), "salt", "0", "0"]


def test_a_solver_uses_one_thread_unless_told_otherwise(tmp_path):
    scripts = ClientScripts(tmp_path, "printenv", ["OMP_NUM_THREADS"])
    assert run(scripts).stdout.strip() == "1"
    assert run(scripts, OMP_NUM_THREADS="4").stdout.strip() == "4"


def test_the_solvers_exit_status_is_the_scripts(tmp_path):
    assert run(ClientScripts(tmp_path, "sh -c 'exit 7'")).returncode == 7
    assert run(ClientScripts(tmp_path, "no-such-solver-anywhere")).returncode == 127


@pytest.mark.parametrize(
    ("command", "preprocessing"),
    [
        ("true && ./solve", []),
        ("X=1 ./solve", []),
        ("./solve | tee log", []),
        ("time ./solve", []),
        ("./solve $(nproc)", []),
        ("./solve", ["trap 'echo bye' EXIT"]),
        ("solve", ["solve() { echo mine; }"]),
        ("solve", ["alias solve=./solve"]),
    ],
)
def test_a_shell_that_has_more_to_do_stays(tmp_path, command, preprocessing):
    script = ClientScripts(tmp_path, command, [], preprocessing).write(0, ["1"])
    assert script.read_text().splitlines()[-1] == f"{command} 1"


def test_a_plain_solver_takes_the_shells_place(tmp_path):
    script = ClientScripts(tmp_path, "python3 solve.py", [], ["cd sub"]).write(0, ["1", "'a b'"])
    assert script.read_text().splitlines()[-1] == "exec python3 solve.py 1 'a b'"


def test_a_folder_with_spaces_and_quotes_works(tmp_path):
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    assert run(ClientScripts(folder, "pwd")).stdout.strip() == str(folder)


def test_a_removed_script_may_be_removed_again(tmp_path):
    scripts = ClientScripts(tmp_path, "true")
    path = scripts.write(4, [])
    scripts.remove(4)
    scripts.remove(4)
    assert not path.exists()
