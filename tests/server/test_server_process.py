"""``melissa-server`` as the launcher runs it: a process of its own, on the real control channel."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from server_process import CONFIGURATION, STUDY, ServerProcess

from melissa.launcher.message import (
    Failure,
    Finished,
    Ping,
    SubmitClient,
)


@pytest.fixture
def start(tmp_path):
    started = []

    def start(**options):
        started.append(ServerProcess(tmp_path, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


def test_a_study_runs_to_its_end(start, tmp_path):
    server = start()
    server.serve()
    assert server.end() == 0
    (finished,) = server.of(Finished)
    assert finished.status == 0
    assert finished.report["ledger"]["trained"] == 12
    assert (tmp_path / "out" / "study_report.json").exists()
    lines = [line.split(" ", 3)[3] for line in server.log.splitlines() if " INFO " in line]
    assert "Server finalizing with status 0" in lines
    assert sum(line.startswith("created client.") for line in lines) == 3
    for simulation_id in range(3):
        assert f"sim-id={simulation_id} has finished sending" in lines
        assert (tmp_path / "out" / "client_scripts" / f"client.{simulation_id}.sh").exists()


@pytest.mark.parametrize(
    ("study", "kind", "texts"),
    [
        (
            "import no_such_module_of_nobody\n",
            "ModuleNotFoundError",
            ["study.py", "no_such_module_of_nobody"],
        ),
        ("def f(:\n", "SyntaxError", ["study.py", "def f(:"]),
        (STUDY.replace("super().__init__(config_dict)", "1 / 0"), "ZeroDivisionError", ["study.py", "1 / 0"]),
        (STUDY.replace("class Study", "class Stdy"), "ConfigurationFileError", ["no class Study", "Stdy"]),
        ("raise SystemExit(5)\n", "SystemExit", ["study.py"]),
        (
            STUDY + "    def on_batch_end(self, batch_idx): raise OSError('disk')\n",
            "OSError",
            ["on_batch_end"],
        ),
        (STUDY.replace("        return None, None", "        import os; os.abort()"), None, []),
    ],
    ids=["import", "syntax", "init", "class", "exit", "hook", "abort"],
)
def test_an_error_of_the_users_class_is_told_within_seconds(start, study, kind, texts):
    start_time = time.monotonic()
    server = start(study=study)
    server.serve()
    status = server.end()
    assert time.monotonic() - start_time < 60
    if kind is None:
        # Nothing can be said by a process that is killed: the launcher sees how it ended.
        assert status == -signal.SIGABRT
        return
    assert status == 1
    (failure,) = server.of(Failure)
    assert failure.kind == kind
    for text in texts:
        assert text in failure.message + failure.traceback
        assert text in server.stderr
        assert text in server.log
    assert "melissa/server" not in failure.traceback


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_study_in_order(start, number):
    server = start(nb_steps=1_000_000, study_options=CONFIGURATION["study_options"] | {"nb_time_steps": None})
    server.serve(until=lambda message: isinstance(message, SubmitClient))
    threading.Timer(0.5, server.process.send_signal, args=(number,)).start()
    server.serve()
    assert server.end() == 128 + number
    (finished,) = server.of(Finished)
    ledger = finished.report["ledger"]
    assert ledger["declared"] == ledger["trained"] + sum(ledger["dropped"].values())
    assert ledger["declared"] > 0
    assert server.of(Failure) == []
    assert f"{signal.Signals(number).name} came" in server.log


STUCK = STUDY.replace("        pass\n    def checkpoint", "        time.sleep(600)\n    def checkpoint")


def test_a_second_signal_ends_the_server_at_once(start):
    server = start(study=STUCK)
    server.serve(until=lambda message: getattr(message, "values", {}).get("phase") == "training")
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == 128 + signal.SIGTERM


def test_a_signal_during_the_construction_of_the_model_ends_the_server(start):
    slow = STUDY.replace("        return None, None", "        print('here', flush=True); time.sleep(600)")
    server = start(study=slow)
    server.serve(until=lambda message: isinstance(message, Ping))
    time.sleep(1.0)
    server.process.send_signal(signal.SIGTERM)
    server.serve()
    assert server.end() == 128 + signal.SIGTERM


def test_a_signal_after_a_failure_leaves_it_a_failure(start):
    """The class fails before data are received, when a signal could still interrupt the study."""
    study = STUDY.replace("        return None, None", "        raise OSError('no licence')") + (
        "    def _server_finalize(self, exit_=0):\n"
        "        import signal, time\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "        while self._ending.stop_reason is None:\n"
        "            time.sleep(0.01)\n"
        "        super()._server_finalize(exit_)\n"
    )
    server = start(study=study)
    server.serve()
    assert server.end(timeout=60) == 1
    (failure,) = server.of(Failure)
    assert "no licence" in failure.message
    assert "SIGTERM came" in server.log
    assert server.log.endswith("Server finalizing with status 1\n")


def test_the_death_of_the_launcher_ends_the_server(start):
    server = start(nb_steps=1_000_000, study_options=CONFIGURATION["study_options"] | {"nb_time_steps": None})
    server.serve(until=lambda message: isinstance(message, SubmitClient))
    server.channel.close()
    assert server.end() == 1
    assert "the launcher is gone" in server.log


def test_without_a_launcher_it_says_how_to_start_a_study(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MELISSA_")}
    result = subprocess.run(
        [sys.executable, "-m", "melissa.server", "--config_name", "study"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert result.returncode == 1
    assert "MELISSA_LAUNCHER_ADDRESS" in result.stderr
    assert "melissa-launcher --config_name" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_version_is_printed():
    result = subprocess.run(
        [sys.executable, "-m", "melissa.server", "--version"], capture_output=True, text=True, timeout=60
    )
    assert result.stdout.startswith("melissa-server ")
