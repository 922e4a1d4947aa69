"""Whole studies under a real Slurm."""

import json
import os
import signal
import subprocess
import sys

from melissa.scheduler import slurm_guard

ENDLESS = """
declare()
send(0)
mark(f"sent.{SIMULATION}")
while True:
    time.sleep(1)
"""


def test_a_study_runs_as_batch_jobs(study, slurm_cluster):
    study.configure(
        {
            "launcher_config.scheduler_arg": ["--time=10"],
            "launcher_config.scheduler_arg_server": ["--ntasks=1"],
            "launcher_config.scheduler_arg_client": ["-n", "1"],
        }
    )
    study.succeed()
    study.expect_ledger(4 * 5)
    assert "the server's job is running, job " in study.launcher_log
    assert "registered: process" in study.launcher_log
    assert f"at {os.uname().nodename}:" in study.launcher_log
    assert slurm_cluster.run("squeue", "-h") == ""


FIRST_TIME_ENDLESS = """
if os.environ["MELISSA_STUDY_EPOCH"] == "1":
    declare()
    send(0)
    mark("here")
    time.sleep(1000)
solve(5)
"""


def test_a_server_that_is_killed_is_started_again(study):
    study.solver(FIRST_TIME_ENDLESS)
    launcher = study.start()
    study.wait_for_mark("here")
    os.kill(study.process("melissa.server"), signal.SIGKILL)
    result = study.wait(launcher)
    assert result.returncode == 0, study.logs()
    assert "the server is started again: restart 1" in result.stderr
    study.expect_ledger(4 * 5)


def test_nothing_outlives_a_launcher_that_is_killed(study, slurm_cluster, wait):
    study.solver(ENDLESS)
    launcher = study.start()
    study.wait_for_mark("sent.0")
    launcher.kill()
    wait(lambda: slurm_cluster.run("squeue", "-h") == "", "an empty queue")
    study.wait_for_no_process()


def test_server_and_clients_end_by_themselves_when_nobody_is_left_to_cancel_them(study, slurm_cluster, wait):
    study.solver(
        """
        declare()
        for time_step in range(10_000):
            send(time_step)
            mark(f"sent.{SIMULATION}")
            time.sleep(0.1)
        """
    )
    study.configure({"study_options.nb_time_steps": None})
    launcher = study.start()
    study.wait_for_mark("sent.0")
    os.kill(study.process(slurm_guard.SCRIPT), signal.SIGKILL)
    launcher.kill()
    wait(lambda: slurm_cluster.run("squeue", "-h") == "", "an empty queue")
    assert "the launcher is gone" in study.server_log


def run_in_allocation(study, tasks):
    study.config_path.write_text(json.dumps(study.config))
    launcher = [sys.executable, "-m", "melissa.launcher", "--config_name", str(study.config_path)]
    result = subprocess.run(
        ["salloc", "-Q", "-n", str(tasks), *launcher],
        env=study.environment(),
        cwd=study.project,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr + study.logs()


def test_in_an_allocation_a_study_runs_as_steps_of_it(study):
    run_in_allocation(study, 3)
    study.expect_ledger(4 * 5)
    assert "the server's job is running, process " in study.launcher_log


TWO_RANKS = {"launcher_config.scheduler_arg_server": ["--ntasks=2"]}


def test_a_server_of_two_ranks_is_one_batch_job(study):
    study.configure(TWO_RANKS)
    study.succeed()
    study.expect_ledger(4 * 5)
    assert [rank["ledger"]["trained"] for rank in study.report["ranks"]] == [10, 10]


def test_in_an_allocation_a_server_of_two_ranks_is_one_step(study):
    study.configure(TWO_RANKS)
    run_in_allocation(study, 4)
    study.expect_ledger(4 * 5)
    assert len(study.report["ranks"]) == 2


def test_two_ranks_train_data_parallel_as_slurm_s_environment_says(study):
    study.configure(TWO_RANKS | {"dl_config.setup_slurm_ddp": True})
    study.server(
        """
        import os

        from melissa.server.deep_learning.base_dl_server import rank_zero_only

        class Server(LearningServer):
            def on_train_start(self):
                assert torch.distributed.get_world_size() == 2
                assert os.environ["MASTER_PORT"]

            @rank_zero_only
            def on_train_end(self):
                super().on_train_end()
        """,
        base="learning",
    )
    study.succeed()
    assert [rank["ledger"]["trained"] for rank in study.report["ranks"]] == [10, 10]
    assert study.seen["counts"] == [1] * 10
