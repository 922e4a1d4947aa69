"""Whole studies under the launcher: the good end, and every bad one, with real processes."""

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from melissa.launcher import launcher
from melissa.scheduler.local import LocalScheduler

FAKE_SERVER = Path(__file__).with_name("fake_server.py")
DEEP = "setsid sleep 1000 & (setsid sh -c 'trap \"\" TERM; sleep 1000; sleep 1000' &) ; sleep 1000"


def test_a_study_finishes(study):
    result = study.run("finish")
    assert result.returncode == 0
    assert result.stderr == ""
    assert f"output folder: {study.output}" in result.stdout
    assert "3/3 simulations" in result.stdout
    for figure in ("300", "290", "10 untrained", "70", "700 samples", "5 %", "0.0123"):
        assert figure in result.stdout
    assert study.state["state"] == "finished"
    assert (study.output / "study.json").read_text() == study.config_path.read_text()
    assert not (study.output / ".melissa" / "key").exists()


def test_clients_find_what_they_need_in_their_environment(study):
    study.solver('env; echo "to stderr" >&2')
    study.run("finish", environment={"OMP_NUM_THREADS": ""})
    variables = dict(
        line.split("=", 1) for line in (study.output / "stdout/simulation1.out").read_text().splitlines()
    )
    expected = {
        "MELISSA_SIMU_ID": "1",
        "MELISSA_SIM_ID": "1",
        "MELISSA_ATTEMPT": "1",
        "MELISSA_STUDY_EPOCH": "1",
        "MELISSA_OUTPUT_DIR": str(study.output),
        "MELISSA_PROJECT_DIR": str(study.project),
        "MELISSA_SERVER_ADDRESS": "127.0.0.1:4711",
        "MELISSA_SERVER_NODE_NAME": "127.0.0.1",
        "MELISSA_KEY_FILE": str(study.output / ".melissa/key"),
        "EXTRA": "from the server",
        "PWD": str(study.output),
        "OMP_NUM_THREADS": "",
    }
    assert {name: variables[name] for name in expected} == expected
    assert variables["MELISSA_LAUNCHER_ADDRESS"].startswith("127.0.0.1:")
    assert (study.output / "stdout/simulation1.err").read_text() == "to stderr\n"


def test_solvers_get_one_thread_unless_the_user_says_otherwise(study, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    study.solver('echo "threads: $OMP_NUM_THREADS"')
    study.run("finish 1")
    assert (study.output / "stdout/simulation0.out").read_text() == "threads: 1\n"


def test_the_key_is_for_its_user_alone_and_on_no_command_line(study):
    study.solver(
        'cp "$MELISSA_KEY_FILE" "$MELISSA_OUTPUT_DIR/copy"; stat -c %a "$MELISSA_KEY_FILE"; '
        "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    )
    study.run("finish 1")
    mode, commands = (study.output / "stdout/simulation0.out").read_text().split("\n", 1)
    assert mode == "600"
    assert "fake_server.py" in commands
    assert (study.output / "copy").read_text() not in commands
    assert stat.S_IMODE((study.output / ".melissa").stat().st_mode) == 0o700


def test_the_job_limit_counts_the_server(study):
    study.solver(
        'cd "$MELISSA_OUTPUT_DIR"; mkdir -p alive; touch alive/$MELISSA_SIMU_ID; ls alive | wc -l >> counts; '
        "sleep 0.15; rm alive/$MELISSA_SIMU_ID"
    )
    assert study.run("finish 8", job_limit=4).returncode == 0
    counts = [int(line) for line in (study.output / "counts").read_text().split()]
    assert len(counts) == 8
    assert max(counts) == 3


def test_clients_start_in_the_order_in_which_they_were_asked_for(study):
    study.solver("echo $MELISSA_SIMU_ID >> order")
    study.run("finish 6", job_limit=2)
    assert (study.output / "order").read_text().split() == ["0", "1", "2", "3", "4", "5"]


def test_the_server_learns_how_clients_end_and_what_they_said_last(study):
    study.solver("seq 1 100 >&2; exit $((MELISSA_SIMU_ID + 4))")
    result = study.run("finish 2")
    ends = {update["job_id"]: update for update in study.updates if update["job_state"] == "FAILED"}
    assert {job: end["exit_code"] for job, end in ends.items()} == {"0.1": 4, "1.1": 5}
    assert ends["0.1"]["error"].split() == [str(number) for number in range(86, 101)]
    assert "simulation 1, attempt 1: ended with status 5" in result.stderr
    states = [update["job_state"] for update in study.updates if update["job_id"] == "0.1"]
    assert states == ["RUNNING", "FAILED"]


def test_the_last_stderr_lines_are_known_without_output_files_too(study):
    study.solver("seq 1 100 >&2; kill -SEGV $$")
    study.run("finish 1", std_output=False)
    end = study.updates[-1]
    assert end["exit_code"] == -signal.SIGSEGV
    assert end["error"].split()[-1] == "100"
    assert list((study.output / "stdout").iterdir()) == []


def test_the_terminal_is_spared_a_thousand_failures(study):
    study.solver("echo oh no >&2; exit 1")
    result = study.run("finish 30", job_limit=11)
    assert result.stderr.count("ended with status 1") == 10
    assert "further failures" in result.stderr
    assert study.log.count("ended with status 1") == 30


def test_a_script_that_cannot_be_started_is_reported(study):
    study.solver("exec /no/such/solver")
    study.run("finish 1")
    assert study.updates[-1]["exit_code"] == 127
    assert "/no/such/solver" in study.updates[-1]["error"]


def test_output_of_a_second_attempt_is_appended(study):
    study.solver("echo attempt $MELISSA_ATTEMPT")
    assert study.run("resubmit").returncode == 0
    assert (study.output / "stdout/simulation0.out").read_text() == "attempt 1\nattempt 2\n"


def test_cancelled_clients_end_and_waiting_ones_never_start(study):
    study.solver("touch started.$MELISSA_SIMU_ID; [ $MELISSA_SIMU_ID = 0 ] && sleep 1 || sleep 1000")
    assert study.run("cancel").returncode == 0
    ends = {update["job_id"]: update for update in study.updates if update["job_state"] == "FAILED"}
    assert set(ends) == {"1.1", "2.1"}
    assert "cancelled before it was started" in ends["2.1"]["error"]
    assert not (study.output / "started.2").exists()


def test_clients_that_are_left_when_the_study_has_finished_are_ended(study):
    study.solver("sleep 1000")
    assert study.run("finish_with_a_client_left").returncode == 0


def test_a_server_that_crashes_after_the_end_of_the_study_does_not_undo_it(study):
    result = study.run("finish_with_a_crash_after_that")
    assert result.returncode == 0
    assert "the study has finished, but the server's process was killed by signal 11" in result.stderr


def test_a_server_that_does_not_end_after_the_study_is_ended(study):
    result = study.run("finish_and_hang", constants={"FINISH_TIMEOUT": 0.3})
    assert result.returncode == 0
    assert "not ended within 0.3 s" in result.stderr


@pytest.mark.parametrize("std_output", [True, False])
def test_an_exception_at_import_stands_with_its_traceback_on_the_terminal(study, std_output):
    result = study.run("crash_at_import", std_output=std_output)
    assert result.returncode == 1
    assert "error: the server ended with status 1" in result.stderr
    assert "Traceback (most recent call last):" in result.stderr
    assert "ImportError: no module named torrrch" in result.stderr
    assert "ImportError: no module named torrrch" in study.log
    assert study.state["state"] == "failed"
    assert "status 1" in study.state["reason"]


def test_a_server_that_crashes_while_training_ends_the_study_and_its_clients(study):
    study.solver(DEEP)
    result = study.run("crash_while_training")
    assert result.returncode == 1
    assert "ValueError: user's mistake [in brackets]" in result.stderr


def test_a_failure_that_the_server_tells_of_is_shown_as_told(study):
    study.solver("sleep 1000")
    result = study.run("tell_of_a_failure")
    assert result.returncode == 1
    assert "error: the server failed with ValueError: in training_step: 3" in result.stderr
    assert 'File "study.py", line 3\nValueError: 3' in result.stderr
    assert result.stderr.count("Traceback") == 1


def test_a_server_that_hangs_after_its_failure_is_ended(study):
    result = study.run("tell_of_a_failure_and_hang", constants={"STOP_TIMEOUT": 0.3})
    assert result.returncode == 1
    assert "FatalError: hopeless solver" in result.stderr


def test_a_server_that_ends_without_having_finished_has_failed(study):
    result = study.run("end_with_status_zero_but_unfinished")
    assert result.returncode == 1
    assert "the server ended with status 0" in result.stderr
    assert "before it had finished the study" in result.stderr


def test_a_study_that_the_server_ends_with_another_status_has_failed(study):
    result = study.run("finish_with_status_seven")
    assert result.returncode == 1
    assert "the server ended the study with status 7" in result.stderr
    assert "samples received" in result.stdout


def test_a_server_that_is_killed_is_told_with_the_signal_and_its_last_words(study):
    result = study.run("be_killed")
    assert result.returncode == 1
    assert "the server was killed by signal 9 (SIGKILL)" in result.stderr
    assert "last words" in result.stderr


def test_a_server_that_never_connects_is_given_up_with_what_it_said(study):
    result = study.run("never_connect", constants={"CONNECT_TIMEOUT": 4.0, "FIRST_REMINDER": 1.0})
    assert result.returncode == 1
    assert "still waiting for the server" in result.stderr
    assert "has not registered within 00:04" in result.stderr
    assert "has not connected to the launcher" in result.stderr
    assert "importing for ever" in result.stderr


def test_a_server_that_never_registers_is_given_up(study):
    result = study.run("never_register", constants={"REGISTER_TIMEOUT": 0.5})
    assert result.returncode == 1
    assert "it has connected, and now imports and constructs the server class" in result.stderr


def test_a_server_that_falls_silent_is_dead_after_twice_its_timeout(study):
    study.solver("sleep 1000")
    result = study.run("fall_silent", server_timeout=0.25)
    assert result.returncode == 1
    assert "more than twice the server_timeout (0.25 s)" in result.stderr


def test_a_server_that_leaves_the_channel_and_goes_on_is_ended(study):
    result = study.run("leave_the_channel_and_stay", constants={"STOP_TIMEOUT": 0.3})
    assert result.returncode == 1
    assert "has left the launcher" in result.stderr


@pytest.mark.parametrize(
    ("character", "complaint"),
    [
        ("talk_nonsense", "unknown message 'Nonsense'"),
        ("ask_before_registering", "asked for a client before it had registered"),
    ],
)
def test_a_server_that_breaks_the_protocol_ends_the_study(study, character, complaint):
    result = study.run(character)
    assert result.returncode == 1
    assert complaint in result.stderr


def test_preprocessing_commands_of_the_server_run_in_its_shell(study):
    commands = ["cd /", "export SEEN=yes", "false", 'echo "$SEEN $PWD $MELISSA_RESTART"', "exit 9"]
    result = study.run("", server={"preprocessing_commands": commands})
    assert "the server ended with status 9" in result.stderr
    assert (study.output / "stdout/server.out").read_text() == "yes / 0\n"


def test_the_real_server_is_started_with_the_configuration(study):
    (study.project / "melissa.py").write_text("raise SystemExit('the wrong melissa')")
    study.output.mkdir()
    (study.output / "melissa.py").write_text("raise SystemExit('the wrong melissa')")
    program = study.project / "shown"
    program.write_text('#!/bin/sh\necho "$@"\nexit 4\n')
    program.chmod(0o755)
    result = study.run("", server={"preprocessing_commands": [f'exec() {{ shift; {program} "$@"; }}']})
    assert "ended with status 4" in result.stderr
    arguments = (study.output / "stdout/server.out").read_text().split()
    folder = ["--project_dir", str(study.project)]
    assert arguments == ["-P", "-m", "melissa.server", *folder, "--config_name", "study.json"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_stops_the_study_in_order(study, number, status):
    study.solver("sleep 1000")
    study.start("live")
    study.wait_for_log("attempt 1: running", 2)
    study.launcher.send_signal(number)
    result = study.wait()
    assert result.returncode == status
    assert f"interrupted by {number.name}" in result.stderr
    assert "samples received" in result.stdout
    assert study.state["state"] == "failed"


def test_ctrl_c_in_the_terminal_reaches_the_launcher_alone(study):
    """The whole foreground group gets SIGINT there; server and clients must not be in it."""
    study.solver("sleep 1000")
    study.start("live")
    study.wait_for_log("attempt 1: running", 2)
    group = os.getpgid(study.launcher.pid)
    assert [pid for pid in study.processes() if os.getpgid(pid) == group] == [study.launcher.pid]
    assert os.getsid(study.supervisor()) != os.getsid(0)


def test_a_second_signal_ends_at_once_what_minds_nothing(study):
    study.solver("trap '' TERM; " + DEEP)
    study.start("live_and_mind_nothing", constants={"STOP_TIMEOUT": 300.0})
    study.wait_for_log("attempt 1: running")
    study.launcher.send_signal(signal.SIGINT)
    study.wait_for_log("SIGINT came")
    time.sleep(0.3)
    assert study.launcher.poll() is None
    study.launcher.send_signal(signal.SIGINT)
    assert study.wait().returncode == 130


def test_a_server_that_minds_nothing_is_ended_a_while_after_the_first_signal(study):
    study.solver("trap '' TERM; " + DEEP)
    study.start("live_and_mind_nothing", constants={"STOP_TIMEOUT": 0.3})
    study.wait_for_log("attempt 1: running")
    study.launcher.send_signal(signal.SIGTERM)
    assert study.wait().returncode == 143


SAVING = [
    ("is_saving", "writes a checkpoint"),
    ("saves_when_stopped", "ends its training step, then writes a checkpoint"),
]


@pytest.mark.parametrize(("key", "words"), SAVING)
def test_a_server_that_writes_its_last_checkpoint_may_take_longer_than_one_that_does_not(key, words, study):
    study.solver("sleep 1000")
    study.start(f"save_when_stopped 5 {key}", constants={"STOP_TIMEOUT": 3.0})
    study.wait_for_log("attempt 1: running")
    study.launcher.send_signal(signal.SIGTERM)
    assert study.wait().returncode == 143
    assert (study.output / "saved").exists()
    assert re.search(rf"the server {words}: it has 2\d\d s for that \(stop_timeout\)", study.log)


@pytest.mark.parametrize(("key", "words"), SAVING)
@pytest.mark.parametrize("nb_signals", [1, 2])
def test_a_checkpoint_ends_with_stop_timeout_or_a_second_signal(nb_signals, key, words, study):
    study.solver("sleep 1000")
    limit = 5.0 if nb_signals == 1 else 300.0
    study.start(f"save_when_stopped 1000 {key}", constants={"STOP_TIMEOUT": 3.0}, stop_timeout=limit)
    study.wait_for_log("attempt 1: running")
    study.launcher.send_signal(signal.SIGTERM)
    study.wait_for_log(f"the server {words}")
    if nb_signals == 2:
        study.launcher.send_signal(signal.SIGTERM)
    result = study.wait()
    assert result.returncode == 143
    assert ("within 5 s (launcher_config.stop_timeout)" in result.stderr) == (nb_signals == 1)
    assert not (study.output / "saved").exists()


def test_a_server_that_fails_in_its_last_step_is_not_waited_for_as_if_it_saved(study):
    study.solver("sleep 1000")
    study.start("fail_in_a_step", constants={"STOP_TIMEOUT": 0.5})
    study.wait_for_log("attempt 1: running")
    study.launcher.send_signal(signal.SIGINT)
    result = study.wait(15)
    assert result.returncode == 130
    assert "the step fails" in study.log
    words = "the server ends its training step, then writes a checkpoint, within 300 s (stop_timeout)"
    assert f"{words}; a second signal ends all at once" in result.stdout


def test_a_signal_while_the_server_starts_ends_the_study(study):
    study.start("never_connect")
    study.wait_for_log("the server's job is running")
    study.launcher.send_signal(signal.SIGINT)
    assert study.wait().returncode == 130


def test_no_process_outlives_a_launcher_that_is_killed(study):
    study.solver("trap '' TERM; " + DEEP)
    study.start("live_and_mind_nothing")
    study.wait_for_log("attempt 1: running")
    study.wait_for_processes(8)  # launcher, supervisor, server, client, and four below the client
    study.launcher.kill()
    study.wait_for_no_process()
    assert study.state["state"] == "running"
    study.solver('echo "epoch $MELISSA_STUDY_EPOCH"')
    again = study.run("finish")
    assert again.returncode == 0
    assert "start 2 of the study" in again.stdout
    assert "did not end properly" in again.stdout
    assert (study.output / "stdout/simulation0.out").read_text() == "epoch 2\n"
    assert study.run("finish").returncode == 1
    assert study.run("finish", overwrite=True).returncode == 0


def test_a_supervisor_that_is_killed_ends_the_study_with_a_message(study):
    study.solver(DEEP)
    study.start("live_and_mind_nothing")
    study.wait_for_log("attempt 1: running")
    os.kill(study.supervisor(), signal.SIGKILL)
    result = study.wait()
    assert result.returncode == 1
    assert "the supervisor of local jobs" in result.stderr
    assert "killed by signal 9" in result.stderr


def test_strangers_on_the_launchers_port_harm_nothing(study):
    stranger = (
        'import os, socket; host, port = os.environ["MELISSA_LAUNCHER_ADDRESS"].split(":"); '
        "socket.create_connection((host, int(port))).sendall(bytes(range(255, 0, -1)) * 40)"
    )
    study.solver(f"{sys.executable} -c '{stranger}'")
    result = study.run("finish")
    assert result.returncode == 0
    assert result.stderr.count("refused a connection") == 3


def test_a_second_server_is_not_let_in(study):
    study.solver(f"{sys.executable} {FAKE_SERVER} end_with_status_zero_but_unfinished; sleep 0.2")
    assert study.run("finish 1").returncode == 0
    assert "one server alone is expected" in study.log


def test_a_full_disk_for_the_log_does_not_stop_the_study(study):
    study.output.mkdir()
    (study.output / "melissa_launcher.log").symlink_to("/dev/full")
    result = study.run("finish")
    assert result.returncode == 0
    assert result.stderr.count("No space left on device") == 1
    assert "the study has finished" in result.stderr


def test_a_terminal_that_goes_away_does_not_stop_the_study(study):
    study.solver("sleep 0.3")
    launcher = study.start("finish 4", job_limit=2)
    launcher.stdout.close()
    assert launcher.wait(60) == 0
    assert study.state["state"] == "finished"


def test_the_live_view_shows_the_study_and_errors_stand_below_it(study):
    study.solver("sleep 1000")
    study.start("live", terminal=True)
    study.wait_for_log("attempt 1: running", 2)
    time.sleep(0.5)
    study.launcher.send_signal(signal.SIGINT)
    result = study.wait()
    assert "simulations" in result.stdout
    assert "Loss/train 0.5" in result.stdout
    assert result.stdout.rindex("interrupted by SIGINT") > result.stdout.rindex("Loss/train")
    assert "\x1b[?25h" in result.stdout  # the cursor is back


def run_with(study, monkeypatch, make_scheduler):
    """Run a launcher in this process, with another scheduler."""
    monkeypatch.setattr(launcher, "make_scheduler", make_scheduler)
    monkeypatch.setattr(launcher, "configure_logger", lambda *arguments, **options: None)
    monkeypatch.setenv("PYTHONPATH", study.packages)
    console = Console(file=io.StringIO())
    status = launcher.Launcher(
        study.config("finish", timer_delay=0.1),
        config_path=study.config_path,
        project_dir=study.project,
        output_dir=study.output,
        console=console,
    ).run()
    return status, console.file.getvalue()


def raise_(error):
    raise error


def test_a_scheduler_without_a_descriptor_is_polled(study, monkeypatch):
    class PolledScheduler(LocalScheduler):
        def fileno(self):
            return None

    status, text = run_with(study, monkeypatch, lambda config: PolledScheduler())
    assert status == 0
    assert "3/3 simulations" in text


def test_ctrl_c_before_the_loop_hears_of_signals_is_an_interruption_too(study, monkeypatch):
    status, text = run_with(study, monkeypatch, lambda config: raise_(KeyboardInterrupt()))
    assert status == 130
    assert "interrupted by SIGINT" in text
    assert (study.state["state"], study.state["reason"]) == ("failed", "interrupted by SIGINT")


def test_whatever_fails_is_written_down_and_raised_even_when_the_terminal_fails_too(study, monkeypatch):
    view = SimpleNamespace(close=lambda state: raise_(OSError("no terminal")))
    monkeypatch.setattr(launcher, "make_view", lambda console, name: view)
    with pytest.raises(OSError, match="no terminal") as caught:
        run_with(study, monkeypatch, lambda config: raise_(ZeroDivisionError("of the launcher")))
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    assert study.state["reason"] == "the launcher failed with ZeroDivisionError: of the launcher"


@pytest.mark.parametrize(
    ("character", "sign"),
    [
        ("live", "simulation 1, attempt 1: running"),
        ("never_connect", "the server's job is running"),
        ("leave_the_channel_and_stay", "the channel to the server is closed"),
        ("finish_and_hang", "the server has finished the study"),
    ],
)
def test_an_idle_study_costs_no_processor_time(study, character, sign):
    study.solver("exit 0" if character == "finish_and_hang" else "sleep 1000")
    study.start(character, terminal=True, server_timeout=1.0)
    study.wait_for_log(sign)
    pids = [study.launcher.pid, study.supervisor()]
    deadline = time.monotonic() + 30.0
    while not is_idle(pids):  # on a loaded machine something of the start may come late
        assert time.monotonic() < deadline


def is_idle(pids):
    """Say whether launcher and supervisor do next to nothing for a while."""
    before = [processor_time(pid) for pid in pids]
    time.sleep(0.8)
    spent = [after - start for after, start in zip(map(processor_time, pids), before, strict=True)]
    return spent[0] < 0.25 and spent[1] == 0.0  # the live view is drawn four times a second


def processor_time(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_launcher_needs_no_array_library_and_no_mpi():
    code = (
        "import sys, melissa.launcher.launcher\n"
        "assert not {'numpy', 'torch', 'tensorflow', 'mpi4py', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_state_file_tells_what_ran(study):
    study.run("finish 1")
    state = study.state
    assert (state["state"], state["epoch"], state["configuration_copy"]) == ("finished", 1, "study.json")
    assert json.dumps(state)
