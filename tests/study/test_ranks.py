"""Whole studies whose server has several ranks, from one command."""

import json
import os
import signal
import time

import pytest
from studies import NB_SIMULATIONS, NB_TIME_STEPS

SECONDS_TO_END = 40.0
"""Within so many all processes are gone after a failure; a loaded machine is slow."""


@pytest.fixture(autouse=True)
def root_may_run_mpiexec(monkeypatch):
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")


def on_ranks(study, nb_ranks=2, **changes):
    """Let the study's server have ranks under mpiexec."""
    study.configure(
        {
            "launcher_config.scheduler": "openmpi",
            "launcher_config.scheduler_arg_server": ["--oversubscribe", "-n", str(nb_ranks)],
        }
        | {name.replace("__", "."): value for name, value in changes.items()}
    )


def seen(study, rank):
    return json.loads(study.read("seen.json" if rank == 0 else f"seen_{rank}.json"))


def pids(study, nb_ranks=2):
    """The processes of the ranks, as each has logged its own."""
    found = []
    for rank in range(nb_ranks):
        study.wait_until(lambda rank=rank: study.read(f"pid.{rank}"), f"the process of rank {rank}")
        found.append(int(study.read(f"pid.{rank}")))
    return found


TELLS_ITS_PROCESS = """
import os
class Server(PlainServer):
    def __init__(self, config_dict):
        super().__init__(config_dict)
        with open(f"pid.{self.rank}.new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(f"pid.{self.rank}.new", f"pid.{self.rank}")
"""


@pytest.mark.parametrize("nb_ranks", [2, pytest.param(3, marks=pytest.mark.long)])
def test_a_study_on_several_ranks_trains_on_every_time_step_once(study, nb_ranks):
    on_ranks(study, nb_ranks, study_options__nb_time_steps=6, dl_config__batch_size=2)
    study.solver("solve(6)")
    study.succeed()
    study.expect_ledger(4 * 6)
    report = study.report
    assert [rank["rank"] for rank in report["ranks"]] == list(range(nb_ranks))
    assert [rank["ledger"]["trained"] for rank in report["ranks"]] == [24 // nb_ranks] * nb_ranks
    assert report["simulations"]["finished"] == 4
    keys = [tuple(key) for rank in range(nb_ranks) for *key, count in seen(study, rank)["samples"]]
    assert sorted(keys) == [(simulation, step) for simulation in range(4) for step in range(6)]
    for rank in range(nb_ranks):
        for simulation, step, count in seen(study, rank)["samples"]:
            assert (simulation + step) % nb_ranks == rank
            assert count == 1
        assert seen(study, rank)["nb_expected_batches"] == len(seen(study, rank)["batches"])
        assert "Server finalizing with status 0" in study.read(f"melissa_server_{rank}.log")
    assert study.server_log.count("has finished sending") == 4


def test_a_client_that_hangs_before_it_knows_all_ranks_is_cancelled_and_runs_again(study):
    study.solver(
        """
        declare()
        if SIMULATION == 1 and ATTEMPT == 1:
            time.sleep(1000)
        send(0, 1, 2, 3, 4)
        melissa_finalize()
        """
    )
    on_ranks(study, study_options__simulation_timeout=3.0)
    study.succeed()
    study.expect_ledger(20)
    assert "client of simulation 1 sent nothing for 3 s" in study.server_log
    # On a loaded machine another one, too, may take so long between two of its ranks.
    assert study.report["simulations"]["resubmitted"] >= 1


def test_a_simulation_may_be_bound_to_a_rank(study):
    on_ranks(study, dl_config__distribution="simulation", dl_config__batch_size=2)
    study.succeed()
    study.expect_ledger(NB_SIMULATIONS * NB_TIME_STEPS)
    for rank in (0, 1):
        assert {simulation % 2 for simulation, _, _ in seen(study, rank)["samples"]} == {rank}


def test_ranks_that_receive_10_and_7_batches_stop_together_and_the_ledger_says_what_is_left(study):
    on_ranks(
        study,
        dl_config__distribution="simulation",
        dl_config__batch_size=1,
        study_options__parameter_sweep_size=2,
        study_options__nb_time_steps=None,
    )
    study.solver("solve(10 if SIMULATION == 0 else 7)")
    study.succeed()
    study.expect_ledger(17, untrained=3)
    assert [rank["batches"] for rank in study.report["ranks"]] == [7, 7]
    assert [rank["ledger"]["dropped"]["untrained"] for rank in study.report["ranks"]] == [3, 0]


def test_a_client_that_dies_between_ranks_runs_again_and_nothing_is_lost(study):
    on_ranks(study, dl_config__batch_size=1)
    study.solver(
        """
        declare()
        if SIMULATION == 1 and ATTEMPT == 1:
            send(0, 1, 2)
            os._exit(7)
        send(*range(5))
        melissa_finalize()
        """
    )
    study.succeed()
    study.expect_ledger(4 * 5)
    assert study.report["simulations"] == {"planned": 4, "finished": 4, "failed": 0, "resubmitted": 1}


def test_a_client_that_dies_after_it_has_finished_with_one_rank_alone_runs_again(study):
    # It leaves melissa_finalize no time: some ranks have heard of the end, others may not.
    on_ranks(study, dl_config__batch_size=1)
    study.solver(
        """
        declare()
        send(*range(5))
        if ATTEMPT == 1:
            import threading
            threading.Timer(0.001 * SIMULATION, os._exit, [9]).start()
        melissa_finalize()
        """
    )
    study.succeed()
    study.expect_ledger(4 * 5)
    # One whose steps were all there, and that had not finished with every rank, is not run for that again.
    simulations = study.report["simulations"]
    assert simulations["finished"] + simulations["failed"] == 4


def test_the_ranks_of_a_solver_send_their_parts_to_all_ranks_of_the_server(study):
    on_ranks(study, dl_config__batch_size=2)
    study.configure({"launcher_config.scheduler_arg_client": ["--oversubscribe", "-n", "2"]})
    study.solver(
        """
        from mpi4py import MPI

        comm, size = MPI.COMM_WORLD, 6
        melissa_init_typed("temperature", size, "float64", comm)
        for time_step in range(5):
            values = field_values("temperature", 2 * size, time_step, PARAMETERS)
            melissa_send_typed("temperature", values[size * comm.Get_rank() :][:size])
        melissa_finalize()
        """
    )
    study.succeed()
    study.expect_ledger(4 * 5)
    assert [rank["ledger"]["trained"] for rank in study.report["ranks"]] == [10, 10]


# Failures.

ARGUMENTS = {
    "__init__": "config_dict",
    "prepare_training_attributes": "",
    "on_train_start": "",
    "on_batch_start": "batch_idx",
    "training_step": "batch, batch_idx",
    "on_batch_end": "batch_idx",
    "process_simulation_data": "data, config_dict",
    "on_train_end": "",
}


@pytest.mark.parametrize(("hook", "failing"), [(hook, place % 2) for place, hook in enumerate(ARGUMENTS)])
def test_a_mistake_on_one_rank_ends_all_with_its_traceback_on_the_terminal(study, hook, failing):
    on_ranks(study, launcher_config__fault_tolerance=False)
    study.server(
        f"""
        class Server(PlainServer):
            def {hook}(self, {ARGUMENTS[hook]}):
                import os
                if int(os.environ.get("OMPI_COMM_WORLD_RANK", "-1")) == {failing}:
                    raise ValueError("a mistake of one rank")
                return super().{hook}({", ".join(ARGUMENTS[hook].split(", ")) if ARGUMENTS[hook] else ""})
        """
    )
    start = time.monotonic()
    terminal = study.fail()
    assert "ValueError: a mistake of one rank" in terminal, terminal
    assert f"in {hook}" in terminal
    assert terminal.index("Traceback") < terminal.index("More is in")
    if failing == 1:
        assert "(server rank 1)" in terminal
    assert "RankLost" not in terminal
    assert time.monotonic() - start < 60.0


def test_a_failure_at_import_on_one_rank_ends_all(study):
    on_ranks(study)
    study.server(
        """
        import os
        if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
            import module_of_nobody
        else:
            import time
            time.sleep(300)
        class Server(PlainServer): pass
        """
    )
    terminal = study.fail()
    assert "No module named 'module_of_nobody' (server rank 1)" in terminal


def test_an_error_in_the_thread_that_serves_rank_1_ends_all(study):
    on_ranks(study)
    study.server(
        """
        class Server(PlainServer):
            def _simulation_finished(self, simulation):
                if self.rank == 1:
                    raise ValueError("in the receiving thread of rank 1")
                super()._simulation_finished(simulation)
        """
    )
    terminal = study.fail()
    assert "in the receiving thread of rank 1" in terminal


def test_a_rank_that_waits_for_one_that_has_failed_ends_too(study):
    # Like a gradient's all-reduce: the other rank waits in a call that never looks at the study.
    on_ranks(study)
    study.server(
        """
        import time
        class Server(PlainServer):
            def training_step(self, batch, batch_idx):
                if self.rank == 1:
                    raise ValueError("a mistake of one rank")
                time.sleep(300)
        """
    )
    terminal = study.fail()
    assert "a mistake of one rank (server rank 1)" in terminal


def test_a_rank_that_is_lost_while_clients_are_waited_for_ends_all(study):
    # Training is over, and the solvers still have something to do.
    on_ranks(study, launcher_config__fault_tolerance=False)
    study.server(TELLS_ITS_PROCESS)
    study.solver("solve(5); wait_for('never')")
    study.configure({"launcher_config.job_limit": NB_SIMULATIONS + 1})
    launcher = study.start()
    ranks = pids(study)
    study.wait_until(lambda: (study.output / "seen_1.json").exists(), "the end of training")
    time.sleep(0.5)
    start = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    result = study.wait(launcher)
    assert time.monotonic() - start < SECONDS_TO_END
    assert f"server rank 1 (process {ranks[1]} on" in result.stderr


@pytest.mark.parametrize("killed", [0, 1])
def test_kill_of_one_rank_ends_all_within_seconds(study, killed):
    on_ranks(study, launcher_config__fault_tolerance=False)
    study.server(TELLS_ITS_PROCESS)
    study.solver("declare(); send(0, 1, 2); wait_for('never')")
    launcher = study.start()
    ranks = pids(study)
    study.wait_for_log("melissa_server_0.log", "simulation 0 (attempt 1): running")
    start = time.monotonic()
    os.kill(ranks[killed], signal.SIGKILL)
    result = study.wait(launcher)
    assert time.monotonic() - start < SECONDS_TO_END
    assert result.returncode != 0
    if killed == 1:
        assert f"server rank 1 (process {ranks[1]} on" in result.stderr
        assert "is gone" in result.stderr


# Stops.


def test_a_stop_ends_training_on_all_ranks_after_the_same_batch(study):
    on_ranks(study, dl_config__batch_size=1)
    study.solver("declare(); [(send(step), time.sleep(0.05)) for step in range(400)]; melissa_finalize()")
    study.configure({"study_options.nb_time_steps": 400})
    launcher = study.start()
    study.wait_for_log("melissa_server_1.log", "lane:")
    time.sleep(2.0)
    launcher.send_signal(signal.SIGTERM)
    result = study.wait(launcher)
    assert result.returncode == 128 + signal.SIGTERM
    ledger = study.balance()
    assert ledger["dropped"]["untrained"] == 0
    zero, one = study.report["ranks"]
    assert zero["batches"] == one["batches"] > 0
    for rank in (0, 1):
        assert "Server finalizing with status 143" in study.read(f"melissa_server_{rank}.log")


def test_sigterm_to_one_rank_ends_the_study_in_order_on_all(study):
    # Otherwise the launcher starts the server again, which goes on with the study to its good end.
    on_ranks(study, dl_config__batch_size=1, launcher_config__fault_tolerance=False)
    study.server(TELLS_ITS_PROCESS)
    study.solver("declare(); [(send(step), time.sleep(0.05)) for step in range(400)]; melissa_finalize()")
    study.configure({"study_options.nb_time_steps": 400})
    launcher = study.start()
    ranks = pids(study)
    study.wait_for_log("melissa_server_1.log", "lane:")
    os.kill(ranks[1], signal.SIGTERM)
    result = study.wait(launcher)
    assert result.returncode != 0
    assert study.balance()["declared"] > 0
    zero, one = study.report["ranks"]
    assert zero["batches"] == one["batches"]


# Balance.


def test_a_full_rank_beside_an_empty_one_that_no_client_can_feed_ends_the_study_and_names_both(study):
    # One client at a time: the first fills rank 0, and waits for room there, before any comes to rank 1.
    on_ranks(
        study,
        dl_config__buffer="FIRO",
        dl_config__buffer_size=8,
        dl_config__per_server_watermark=4,
        dl_config__batch_size=1,
        dl_config__distribution="simulation",
        launcher_config__job_limit=2,
        study_options__parameter_sweep_size=4,
        study_options__nb_time_steps=12,
    )
    study.solver("solve(12)")
    terminal = study.fail()
    assert "the server's ranks wait for each other: rank 0 is full (8 samples" in terminal
    assert "while rank 1 has 0, too few for a batch of 1" in terminal
    assert "the watermark is lifted on all ranks" in study.server_log


def test_training_begins_below_the_watermark_when_clients_wait_for_room_on_another_rank(study):
    on_ranks(
        study,
        dl_config__buffer="Reservoir",
        dl_config__buffer_size=8,
        dl_config__per_server_watermark=8,
        dl_config__batch_size=1,
        dl_config__distribution="simulation",
        launcher_config__job_limit=3,
        study_options__parameter_sweep_size=4,
        study_options__nb_time_steps=12,
    )
    study.solver(
        """
        declare()
        if SIMULATION == 1:
            send(0, 1, 2)
            wait_for("go on")
            send(*range(3, 12))
        else:
            send(*range(12))
        melissa_finalize()
        """
    )
    launcher = study.start()
    study.wait_for_log("melissa_server_0.log", "the watermark is lifted on all ranks")
    study.set_mark("go on")
    result = study.wait(launcher)
    assert result.returncode == 0, result.stderr
    ledger = study.balance()
    assert ledger["declared"] == 4 * 12
    # A reservoir may draw more often on one rank: what another has left when that is dry is not trained.
    assert ledger["dropped"] == {"client_failed": 0, "stopped_early": 0, "untrained": 48 - ledger["trained"]}


@pytest.mark.parametrize("interrupted", [0, 1])
def test_sigterm_to_a_rank_that_makes_its_model_ends_all_with_that_status_and_is_no_failure(
    study, interrupted
):
    on_ranks(study, launcher_config__fault_tolerance=False)
    study.server(
        TELLS_ITS_PROCESS
        + f"""
    def prepare_training_attributes(self):
        import time
        time.sleep(60.0 if self.rank == {interrupted} else 0.0)
        return None, None
"""
    )
    launcher = study.start()
    ranks = pids(study)
    study.wait_for_log("melissa_launcher.log", "the server has connected")
    time.sleep(1.0)
    start = time.monotonic()
    os.kill(ranks[interrupted], signal.SIGTERM)
    result = study.wait(launcher)
    assert time.monotonic() - start < SECONDS_TO_END
    assert "the server ended with status 143" in study.read("melissa_launcher.log")
    assert "the server failed" not in result.stderr
    for rank in (0, 1):
        log = study.read(f"melissa_server_{rank}.log")
        assert "the server ends before the study has begun: SIGTERM came" in log
        assert "the server fails" not in log
