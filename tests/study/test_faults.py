"""Studies in which something dies: what is run again, what is dropped, what ends; and nothing is left."""

import os
import re
import signal

import pytest
from studies import NB_SIMULATIONS, NB_TIME_STEPS, Study

EVERY_SAMPLE = {(sim, step): 1 for sim in range(NB_SIMULATIONS) for step in range(NB_TIME_STEPS)}

ENDLESS = """
declare()
send(0, 1)
mark(f"sent.{SIMULATION}")
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while SIMULATION == 0:
    time.sleep(1000)
for time_step in range(2, 1_000_000):
    send(time_step)
    time.sleep(0.01)
"""
"""Simulation 0 is deaf to SIGTERM and does nothing more; the other ones send for ever."""


@pytest.fixture(scope="module")
def mended(tmp_path_factory):
    """Return a finished study, three of whose clients fail at first, each in a way of its own."""
    study = Study(tmp_path_factory.mktemp("mended"))
    study.solver(
        """
        print("attempt", ATTEMPT, "with", *PARAMETERS, flush=True)
        declare()
        send(0, 1, 2)
        if ATTEMPT == 1 and SIMULATION == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if ATTEMPT == 1 and SIMULATION == 1:
            sys.exit(0)
        if ATTEMPT == 1 and SIMULATION == 2:
            time.sleep(1000)
        send(3, 4)
        melissa_finalize()
        """
    )
    study.configure({"study_options.simulation_timeout": 2.0, "launcher_config.job_limit": 4})
    study.succeed()
    return study


def attempts(study, simulation):
    """Return the parameters of each start of a simulation."""
    lines = study.read(f"stdout/simulation{simulation}.out").splitlines()
    return [line.split(" with ")[1] for line in lines]


def test_after_failures_every_step_is_trained_once_all_the_same(mended):
    mended.expect_ledger(20)
    assert mended.counts() == EVERY_SAMPLE
    simulations = mended.report["simulations"]
    assert (simulations["planned"], simulations["finished"], simulations["failed"]) == (4, 4, 0)
    assert simulations["resubmitted"] >= 3
    assert mended.server_log.count("created client.") == 4


def test_a_client_that_is_killed_runs_again_with_the_same_parameters(mended):
    first, second = attempts(mended, 0)
    assert first == second
    warning = re.search(r"WARNING client of simulation 0 \(attempt 1\) (.*)", mended.server_log)[1]
    assert "signal 9" in warning


def test_a_client_that_exits_with_status_0_without_finalize_runs_again(mended):
    assert len(attempts(mended, 1)) == 2
    warning = re.search(r"WARNING client of simulation 1 \(attempt 1\) (.*)", mended.server_log)[1]
    assert "without melissa_finalize" in warning
    assert "melissa_finalize" in mended.read("stdout/simulation1.err")


def test_a_client_that_hangs_is_cancelled_and_runs_again(mended):
    assert len(attempts(mended, 2)) >= 2
    assert re.search(
        r"client of simulation 2 .*nothing for 2 s \(study_options\.simulation_timeout\)", mended.server_log
    )


def test_a_client_that_fails_again_and_again_gets_fresh_parameters(study):
    study.solver(
        """
        print("attempt", ATTEMPT, "with", *PARAMETERS, flush=True)
        declare()
        send(0, 1)
        if SIMULATION == 0 and ATTEMPT <= 3:
            sys.exit("the solver has diverged")
        send(2, 3, 4)
        melissa_finalize()
        """
    )
    study.configure(
        {"study_options.crashes_before_redraw": 2, "study_options.parameter_sweep_size": 2},
    )
    study.succeed()
    first, second, third, fresh = attempts(study, 0)
    assert first == second == third != fresh
    assert study.report["simulations"]["resubmitted"] == 3
    # Two steps of the first draw came, were complete, and are trained; the second draw is another simulation.
    study.expect_ledger(12)
    assert study.counts()[0, 0] == study.counts()[0, 1] == 2
    assert study.server_log.count("created client.") == 2
    assert f"fresh parameters ({fresh.replace(' ', ', ')})" in study.server_log


def test_without_fault_tolerance_a_failed_client_ends_the_study(study):
    study.solver(
        """
        declare()
        send(0, 1)
        if SIMULATION == 1:
            sys.exit("the mesh has a hole")
        wait_for("never")
        """
    )
    study.configure({"launcher_config.fault_tolerance": False})
    terminal = study.fail()
    for words in ("simulation 1", "status 1", "fault_tolerance", "the mesh has a hole"):
        assert words in terminal
    assert study.balance()["dropped"]["client_failed"] == 0
    assert study.server_log.endswith("Server finalizing with status 1\n")


def test_a_dead_client_is_dropped_with_its_reason_where_the_study_is_to_go_on_without_it(study):
    study.solver(
        """
        fields = {"temperature": (12, "float64"), "flow": (3, "float64")}
        declare(fields)
        if SIMULATION == 1:
            send(0, 1, fields=fields)
            melissa_send_typed("temperature", field_values("temperature", 12, 2, PARAMETERS))
            mark("sent.1")
            wait_for("done.0")  # so the server has read what came before, from this one, too
            sys.exit("the mesh has a hole")
        if SIMULATION == 0:
            wait_for("sent.1")
        send(0, 1, 2, 3, 4, fields=fields)
        melissa_finalize()
        mark(f"done.{SIMULATION}")
        """
    )
    study.configure({"ignore_client_death": True, "study_options.field_names": ["temperature", "flow"]})
    study.succeed()
    # Of the step that came in part nothing can be trained.
    study.expect_ledger(18, client_failed=1)
    assert study.report["simulations"] == {"planned": 4, "finished": 3, "failed": 1, "resubmitted": 0}
    assert set(EVERY_SAMPLE) - set(study.counts()) == {(1, 2), (1, 3), (1, 4)}
    assert "simulation 1 is given up" in study.server_log


def test_a_hopeless_solver_ends_the_study_with_its_last_words(study):
    study.solver('sys.exit("line 1 of many\\ncannot open mesh.dat: no such file")')
    terminal = study.fail()
    for words in ("first 3 clients", "before any time step", "status 1", "cannot open mesh.dat"):
        assert words in terminal
    assert study.server_log.count("created client.") <= 4
    study.expect_ledger(0)


def stop_by_signal(study, number, *marks):
    """Stop the study of `ENDLESS` by a signal when all marks are set; return the ledger, which balances."""
    study.solver(ENDLESS)
    study.configure({"study_options.nb_time_steps": None})
    launcher = study.start()
    for mark in ("sent.0", "sent.1", *marks):
        study.wait_for_mark(mark)
    launcher.send_signal(number)
    result = study.wait(launcher)
    assert result.returncode == 128 + number
    assert f"interrupted by {number.name}" in result.stderr
    assert re.search(r"dropped\W+\d+ .*stopped early", result.stdout)
    assert study.report["simulations"] == {"planned": 4, "finished": 0, "failed": 0, "resubmitted": 0}
    # Who was told to stop ended without a complaint.
    assert "Traceback" not in study.read("stdout/simulation1.err")
    assert "Traceback" not in result.stderr
    return study.balance()


def test_ctrl_c_while_the_server_waits_for_its_watermark_drops_all_with_the_reason(study):
    study.configure(
        {
            "dl_config.buffer": "Reservoir",
            "dl_config.buffer_size": 10_000,
            "dl_config.per_server_watermark": 10_000,
        }
    )
    ledger = stop_by_signal(study, signal.SIGINT)
    assert ledger["declared"] == ledger["dropped"]["stopped_early"] >= 4
    # Training has not begun, so it does not end either.
    assert not (study.output / "seen.json").exists()


def test_sigterm_while_the_server_trains_keeps_what_is_trained_and_drops_the_rest_with_the_reason(study):
    study.server(
        """
        import time
        from pathlib import Path


        class Server(PlainServer):
            def training_step(self, batch, batch_idx):
                super().training_step(batch, batch_idx)
                Path("trained").touch()
                time.sleep(0.3)
        """
    )
    study.configure({"dl_config.batch_size": 2})
    ledger = stop_by_signal(study, signal.SIGTERM, "trained")
    assert ledger["trained"] == len(study.counts()) >= 2
    assert ledger["dropped"]["stopped_early"] >= 1
    assert ledger["dropped"]["untrained"] == ledger["dropped"]["client_failed"] == 0


def test_nothing_of_a_study_outlives_a_launcher_that_is_killed(study):
    study.solver(ENDLESS)
    launcher = study.start()
    study.wait_for_mark("sent.0")
    study.wait_for_mark("sent.1")
    study.wait_until(lambda: len(study.processes()) >= 5, "launcher, supervisor, server, two clients")
    launcher.kill()
    study.wait_for_no_process()


def test_a_study_whose_launcher_was_killed_goes_on_when_it_is_started_again(study):
    study.solver(
        """
        if os.environ["MELISSA_STUDY_EPOCH"] == "1" and SIMULATION > 0:
            declare()
            send(0)
            mark("halfway")
            time.sleep(1000)
        solve(5)
        """
    )
    launcher = study.start()
    study.wait_for_mark("halfway")
    study.wait_for_log("melissa_server_0.log", "sim-id=0 has finished sending")
    launcher.kill()
    study.wait_for_no_process()
    result = study.succeed()
    assert "start 2 of the study" in result.stdout
    study.expect_ledger(4 * 5)


def test_a_server_that_is_killed_is_started_again_and_finishes_the_study(study):
    study.solver(
        """
        if os.environ["MELISSA_STUDY_EPOCH"] == "1":
            declare()
            send(0)
            mark(f"sent.{SIMULATION}")
            time.sleep(1000)
        solve(5)
        """
    )
    launcher = study.start()
    study.wait_for_mark("sent.0")
    study.wait_for_mark("sent.1")
    os.kill(study.process("melissa.server"), signal.SIGKILL)
    result = study.wait(launcher)
    assert result.returncode == 0, study.logs()
    assert "the server was killed by signal 9" in result.stderr
    assert "the server is started again: restart 1" in result.stderr
    study.expect_ledger(4 * 5)


def test_without_fault_tolerance_a_server_that_is_killed_ends_the_study_with_a_clear_message(study):
    study.configure({"launcher_config.fault_tolerance": False})
    study.solver(ENDLESS)
    launcher = study.start()
    study.wait_for_mark("sent.0")
    study.wait_for_mark("sent.1")
    os.kill(study.process("melissa.server"), signal.SIGKILL)
    result = study.wait(launcher)
    assert result.returncode == 1
    assert "the server was killed by signal 9" in result.stderr
    assert "melissa_server_0.log" in result.stderr
