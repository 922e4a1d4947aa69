"""Studies with something wrong from outside: a clear message within seconds, and nobody else is harmed."""

import random
import re
import socket
import subprocess
import sys

import pytest
from studies import NB_SIMULATIONS, NB_TIME_STEPS, SOON, Study

EVERY_SAMPLE = {(sim, step): 1 for sim in range(NB_SIMULATIONS) for step in range(NB_TIME_STEPS)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"dl_config.batch_size": None, "dl_config.batchsize": 4},
            ["study.json", "dl_config.batch_size", "batchsize"],
        ),
        ({"study_options.nb_parameters": "two"}, ["study_options.nb_parameters", '"two"', "whole number"]),
        ({"launcher_config.job_limit": 1}, ["launcher_config.job_limit", "1", "at least 2"]),
        ({"server_filename": "sever.py"}, ["server_filename", "sever.py", "server.py"]),
        (
            {"client_config.executable_command": "./solver.x"},
            ["client_config.executable_command", "solver.x"],
        ),
        (
            {
                "dl_config.buffer": "Reservoir",
                "dl_config.pseudo_epochs": 3,
                "dl_config.per_server_watermark": 1,
            },
            ["dl_config.pseudo_epochs", "3", "FIRO"],
        ),
        (
            {"dl_config.buffer": "FIRO", "dl_config.buffer_size": 50, "dl_config.per_server_watermark": 30},
            ["dl_config.per_server_watermark", "30", "20 samples"],
        ),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_is_started(study, changes, words):
    study.configure(changes)
    terminal = study.fail()
    for word in words:
        assert word in terminal
    assert "Traceback" not in terminal
    assert not study.output.exists()


def test_a_configuration_that_is_no_json_is_refused_with_the_place(study):
    study.config_text = '{\n  "server_filename": "server.py"\n  "server_class": "Server"\n}\n'
    terminal = study.fail()
    assert re.search(r"study\.json.*line 3", terminal)
    assert not study.output.exists()


def test_a_class_that_is_not_in_the_file_is_named_beside_those_that_are(study):
    study.configure({"server_class": "Sever"})
    terminal = study.fail()
    for word in ("server_class", "Sever", "server.py", "Server"):
        assert word in terminal


def test_a_solver_that_is_missing_on_the_machine_ends_the_study_within_seconds(study):
    study.configure({"client_config.executable_command": "cd . && solver_of_nobody"})
    terminal = study.fail()
    for word in ("solver_of_nobody", "not found", "first 3 clients", "client_scripts/client."):
        assert word in terminal


def test_a_field_that_the_configuration_lacks_ends_the_study_with_both_names(study):
    study.solver('solve(5, {"pressure": (12, "float64")})')
    terminal = study.fail()
    for word in ("pressure", "temperature", "field"):
        assert word in terminal
    study.expect_ledger(0)


def test_a_client_with_another_size_fails_alone(study):
    study.solver(
        """
        if SIMULATION != 1 or ATTEMPT > 1:
            declare()
            send(0)
            mark(f"sent.{SIMULATION}")
            send(1, 2, 3, 4)
            melissa_finalize()
        else:
            wait_for("sent.0")
            solve(5, {"temperature": (7, "float64")})
        """
    )
    study.succeed()
    study.expect_ledger(20)
    assert study.counts() == EVERY_SAMPLE
    assert study.report["simulations"]["resubmitted"] == 1
    for text in (study.server_log, study.read("stdout/simulation1.err")):
        assert re.search(r"temperature.*\b7\b.*\b12\b|temperature.*\b12\b.*\b7\b", text), text


def test_clients_that_send_other_numbers_of_steps_than_configured_are_reported(study):
    study.solver(
        """
        if SIMULATION == 2:
            declare()
            send(0, 1, 2, 3, 4)
            os._exit(3)
        solve({0: 3, 1: 7}.get(SIMULATION, 5))
        """
    )
    result = study.succeed()
    # What is complete without a finalize is complete all the same: another attempt could only fail again.
    study.expect_ledger(18)
    simulations = study.report["simulations"]
    assert (simulations["finished"], simulations["failed"]) == (2, 2)
    assert re.search(r"time step 5 came.*\b5\b", result.stderr)
    assert re.search(r"simulation 0 .*\b3 time steps.*nb_time_steps is 5", study.server_log)
    assert re.search(r"simulation 1 .*time step 5 came.*\b5\b", study.server_log)


def test_a_watermark_that_turns_out_unreachable_is_reported_and_all_is_trained_at_the_end(study):
    study.configure(
        {
            "study_options.nb_time_steps": None,
            "dl_config.buffer": "Reservoir",
            "dl_config.buffer_size": 60,
            "dl_config.per_server_watermark": 50,
        }
    )
    study.succeed()
    study.expect_ledger(20)
    assert set(study.counts()) == set(EVERY_SAMPLE)
    warning = re.search(r"WARNING (.*per_server_watermark.*)", study.server_log)[1]
    assert re.search(r"\b50\b", warning)
    assert re.search(r"\b20\b", warning)


def test_a_buffer_beyond_all_memory_ends_the_study_with_both_figures(study):
    study.configure({"dl_config.buffer_size": 10**12})
    terminal = study.fail()
    error = terminal[terminal.index("error: the server failed") :]
    assert re.search(r"needs \d+ MiB .*1000000000000 for the population.* \d+ MiB of memory", error), error
    assert "buffer_size" in error


def test_a_full_disk_for_the_logs_does_not_end_the_study(study):
    study.output.mkdir()
    for name in ("melissa_launcher.log", "melissa_server_0.log"):
        (study.output / name).symlink_to("/dev/full")
    (study.output / "tensorboard").write_text("a file where the logs' folder should be")
    result = study.succeed()
    study.expect_ledger(20)
    assert study.counts() == EVERY_SAMPLE
    server = study.read("stdout/server.err")
    for name, said in (("melissa_launcher.log", result.stderr), ("melissa_server_0.log", server)):
        assert re.search(rf"cannot write .*{name}: No space left on device", said)
    assert "TensorBoard" in server
    assert "Server finalizing with status 0" in server


def test_a_full_disk_for_the_client_s_script_ends_the_study_with_the_file_s_name(study):
    (study.output / "client_scripts").mkdir(parents=True)
    (study.output / "client_scripts/client.0.sh.new").symlink_to("/dev/full")
    terminal = study.fail()
    assert f"{study.output}/client_scripts/client.0.sh: No space left on device" in terminal


def test_a_full_disk_for_the_report_is_told_and_its_figures_are_shown_all_the_same(study):
    study.output.mkdir()
    (study.output / "study_report.json.new").symlink_to("/dev/full")
    result = study.run()
    assert result.returncode == 1
    assert f"{study.output}/study_report.json: No space left on device" in result.stderr
    assert re.search(r"trained\W+20\b", result.stdout)
    assert study.counts() == EVERY_SAMPLE


class Besieged(Study):
    """A study in whose midst strangers come; it waits for them with half of its steps sent."""

    def siege(self) -> None:
        """Run it, and let them all come."""
        self.solver(
            """
            declare()
            send(0, 1)
            mark(f"sent.{SIMULATION}")
            wait_for("go")
            send(2, 3, 4)
            melissa_finalize()
            """
        )
        launcher = self.start()
        self.wait_for_mark("sent.0")
        self.wait_for_mark("sent.1")
        self.server_address = re.search(r"registered: .* at (\S+:\d+)\n", self.launcher_log)[1]
        self.launcher_address = re.search(r"the launcher listens at (\S+:\d+)\n", self.launcher_log)[1]
        self.silent = [self.connect(self.server_address), self.connect(self.launcher_address)]
        for address in (self.server_address, self.launcher_address):
            for seed in range(5):
                self.throw(address, random.Random(seed).randbytes(3000))
            self.throw(address, b"GET / HTTP/1.1\r\nHost: somebody\r\n\r\n")
        self.rogue = self.run_rogue()
        self.second = self.wait_for_other(self.start())
        self.set_mark("go")
        self.result = self.wait(launcher)
        self.balance()
        self.third = self.run()

    @staticmethod
    def connect(address: str) -> socket.socket:
        host, port = address.split(":")
        return socket.create_connection((host, int(port)), timeout=SOON)

    def throw(self, address: str, data: bytes) -> None:
        """Send bytes, and wait until the other side has had enough of them."""
        with self.connect(address) as stranger:
            try:
                stranger.sendall(data)
                while stranger.recv(4096):
                    pass
            except ConnectionError:
                pass

    def run_rogue(self) -> subprocess.CompletedProcess[str]:
        """Run a solver with another study's key, which says that it is simulation 0."""
        key = self.project / "key"
        key.write_text("ab" * 32)
        variables = {
            "MELISSA_SERVER_ADDRESS": self.server_address,
            "MELISSA_KEY_FILE": str(key),
            "MELISSA_STUDY_EPOCH": "1",
            "MELISSA_SIMU_ID": "0",
            "MELISSA_ATTEMPT": "2",
            "MELISSA_OUTPUT_DIR": str(self.output),
        }
        command = [sys.executable, "solver.py", "0.5", "0.5"]
        return subprocess.run(
            command,
            env=self.environment() | variables,
            cwd=self.project,
            capture_output=True,
            text=True,
            timeout=SOON,
            check=False,
        )

    def wait_for_other(self, launcher: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        stdout, stderr = launcher.communicate(timeout=SOON)
        return subprocess.CompletedProcess(launcher.args, launcher.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def besieged(tmp_path_factory):
    study = Besieged(tmp_path_factory.mktemp("besieged"))
    study.siege()
    yield study
    for connection in study.silent:
        connection.close()


def test_strangers_harm_no_study(besieged):
    assert besieged.result.returncode == 0
    besieged.expect_ledger(20)
    assert besieged.counts() == EVERY_SAMPLE
    assert besieged.report["simulations"] == {"planned": 4, "finished": 4, "failed": 0, "resubmitted": 0}


def test_random_bytes_are_refused_and_reported_on_the_server_s_port(besieged):
    refused = re.findall(r"WARNING a peer at 127\.0\.0\.1:\d+: .*came", besieged.server_log)
    assert len(refused) == 6
    assert "GET / HTTP" in refused[-1]


def test_random_bytes_are_refused_and_reported_on_the_launcher_s_port(besieged):
    assert besieged.result.stderr.count("refused a connection of 127.0.0.1:") == 6


def test_a_client_with_another_study_s_key_is_refused_and_told_so(besieged):
    assert besieged.rogue.returncode != 0
    for words in ("AuthenticationError", besieged.server_address, "study's key", "MELISSA_KEY_FILE"):
        assert words in besieged.rogue.stderr
    assert re.search(
        r"WARNING a peer at .* simulation 0 \(attempt 2.*without proving the study key", besieged.server_log
    )


def test_a_second_study_on_the_output_folder_of_a_live_one_is_refused(besieged):
    assert besieged.second.returncode != 0
    for words in ("live study", str(besieged.output), f"process {besieged.launchers[0].pid}"):
        assert words in besieged.second.stderr


def test_a_study_on_the_output_folder_of_a_finished_one_is_refused(besieged):
    assert besieged.third.returncode != 0
    for words in ("finished", str(besieged.output), "--overwrite"):
        assert words in besieged.third.stderr
