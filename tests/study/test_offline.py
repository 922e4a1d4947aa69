"""Studies in which nothing is sent: what is run, and when it is over."""

import json
import os
import re
import signal

import pytest

OFFLINE_SERVER = """
    from melissa.server.offline_server import OfflineServer


    class Server(OfflineServer):
        def __init__(self, config_dict):
            super().__init__(config_dict)
            self.set_parameter_sampler(ParameterSamplerType.HALTON, l_bounds=[0.0], u_bounds=[1.0])
"""

TRAINING_SERVER = """
    class Server(PlainServer):
        def __init__(self, config_dict):
            super().__init__(config_dict)
            self.make_study_offline()

        def prepare_training_attributes(self):
            raise AssertionError("nothing is trained in a study that is offline")
"""

# A solver with the calls of one that sends, which writes its own file.
SOLVER = """
    values = [float(value) for value in PARAMETERS]
    with open(OUTPUT / f"result.{SIMULATION}.txt", "w") as file:
        declare()
        send(*range(5))
        print(*PARAMETERS, file=file)
    melissa_finalize()
    print("MELISSA_SERVER_ADDRESS" in os.environ)
"""


def simulations(study):
    return study.report["simulations"]


@pytest.mark.parametrize(
    "server", [OFFLINE_SERVER, TRAINING_SERVER], ids=["OfflineServer", "make_study_offline"]
)
def test_solvers_that_send_run_without_a_server_that_receives(study, server):
    study.server(server)
    study.solver(SOLVER)
    if server is OFFLINE_SERVER:
        del study.config["dl_config"]
    study.configure({"study_options.validation_sweep_size": 3})
    result = study.run()
    assert result.returncode == 0, study.logs()
    assert simulations(study) == {"planned": 4, "finished": 4, "failed": 0, "resubmitted": 0}
    assert set(study.report) == {"simulations", "seconds"}
    drawn = dict(re.findall(r"created client\.(\d)\.sh with parameters \[(.*)\]\n", study.server_log))
    assert list(drawn) == ["0", "1", "2", "3"]
    for simulation, parameters in drawn.items():
        assert study.read(f"result.{simulation}.txt").split() == parameters.split(", ")
        assert study.read(f"stdout/simulation{simulation}.out") == "False\n"
        assert study.read(f"stdout/simulation{simulation}.err") == ""
        assert f"simulation {simulation} has ended" in study.server_log
    assert study.server_log.endswith(" INFO Server finalizing with status 0\n")
    assert "has finished sending" not in study.server_log
    assert "4/4 simulations" in result.stdout
    for word in ("samples", "buffer", "batch", "watermark"):
        assert word not in result.stdout, word


def test_a_client_that_fails_runs_again(study):
    study.server(OFFLINE_SERVER)
    study.solver("if SIMULATION == 2 and ATTEMPT == 1: sys.exit(3)")
    assert study.run().returncode == 0, study.logs()
    assert simulations(study) == {"planned": 4, "finished": 4, "failed": 0, "resubmitted": 1}
    assert "without melissa_finalize" not in study.server_log


def test_a_client_that_fails_is_given_up_where_the_study_is_to_go_on_without_it(study):
    study.server(OFFLINE_SERVER)
    study.solver("if SIMULATION == 2: sys.exit(3)")
    study.configure({"ignore_client_death": True})
    assert study.run().returncode == 0, study.logs()
    assert simulations(study) == {"planned": 4, "finished": 3, "failed": 1, "resubmitted": 0}


def test_a_solver_that_cannot_work_ends_the_study_with_its_last_words(study):
    study.server(OFFLINE_SERVER)
    study.solver("sys.exit('no licence for this solver')")
    said = study.fail()
    assert "the first 3 clients failed" in said
    assert "no licence for this solver" in said
    assert "Server finalizing with status 1" in study.server_log


def test_a_study_that_is_interrupted_ends_its_clients(study):
    study.server(OFFLINE_SERVER)
    study.solver("mark(f'runs.{SIMULATION}'); time.sleep(1000)")
    launcher = study.start()
    study.wait_for_mark("runs.0")
    launcher.terminate()
    assert study.wait(launcher).returncode == 143
    assert json.loads(study.read("study_report.json"))["simulations"]["finished"] == 0


def test_a_class_without_a_way_to_draw_is_told_how(study):
    study.server("from melissa.server.offline_server import OfflineServer\nclass Server(OfflineServer): pass")
    assert "call self.set_parameter_sampler" in study.fail()


ON_TWO_RANKS = {
    "launcher_config.scheduler": "openmpi",
    "launcher_config.scheduler_arg_server": ["--oversubscribe", "-n", "2"],
}


def test_on_several_server_ranks_the_first_runs_the_simulations(study):
    study.server(OFFLINE_SERVER)
    study.solver("print('ran')")
    study.configure(ON_TWO_RANKS)
    assert study.run().returncode == 0, study.logs()
    assert simulations(study)["finished"] == 4
    for rank in range(2):
        log = study.read(f"melissa_server_{rank}.log")
        assert log.endswith(" INFO Server finalizing with status 0\n"), log


def test_a_signal_ends_several_ranks_in_order_also_if_another_than_the_first_gets_it(study):
    study.server(
        OFFLINE_SERVER
        + """
        def start(self):
            import os

            with open(f"pid.{self.rank}", "w") as file:
                file.write(str(os.getpid()))
            super().start()
"""
    )
    study.solver(
        """
        if os.environ["MELISSA_STUDY_EPOCH"] == "1":
            mark(f"runs.{SIMULATION}")
            time.sleep(1000)
        """
    )
    study.configure(ON_TWO_RANKS)
    launcher = study.start()
    study.wait_for_mark("runs.0")
    study.wait_for_log("melissa_server_1.log", "rank 0 runs the simulations")
    os.kill(int(study.read("pid.1")), signal.SIGTERM)
    # A signal that was not the launcher's: it starts the server again.
    assert study.wait(launcher).returncode == 0, study.logs()
    assert "the server was ended by SIGTERM, which was not the launcher's" in study.launcher_log
    assert "the study stops early: SIGTERM came (server rank 1)" in study.server_log


def test_after_the_death_of_the_server_what_had_ended_does_not_run_again(study):
    study.server(OFFLINE_SERVER)
    study.solver(
        """
        print("ran with", *PARAMETERS, flush=True)
        if SIMULATION > 1:
            mark(f"runs.{SIMULATION}")
            wait_for("go")
        """
    )
    launcher = study.start()
    for simulation in (0, 1):
        study.wait_for_log("melissa_server_0.log", f"simulation {simulation} has ended")
    study.wait_for_mark("runs.2")
    study.wait_for_mark("runs.3")
    os.kill(study.process("melissa.server"), signal.SIGKILL)
    study.wait_for_log("melissa_server_0.log", "2 simulations had ended before, the others run again")
    study.set_mark("go")
    assert study.wait(launcher).returncode == 0, study.logs()
    assert simulations(study)["finished"] == 4
    runs = [study.read(f"stdout/simulation{simulation}.out").splitlines() for simulation in range(4)]
    assert [len(lines) for lines in runs] == [1, 1, 2, 2]
    # Each with the parameters of before.
    assert all(len(set(lines)) == 1 for lines in runs)
    assert len({lines[0] for lines in runs}) == 4
