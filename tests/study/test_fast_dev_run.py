"""A study in small: one client, two batches, one validation, and what the whole would take."""

from pathlib import Path

VALIDATING = """
class Server(PlainServer):
    def on_train_start(self):
        super().on_train_start()
        self.valid_dataloader = ["some"]
"""
SLOW = """
declare()
for time_step in range(1000):
    send(time_step)
    time.sleep(0.02)
melissa_finalize()
"""


def fast_dev_run(study):
    """Run a study in small; its output folder is the one beside the study's own."""
    result = study.run("--fast-dev-run")
    assert not study.output.exists()
    study.output = Path(f"{study.output}-dev")
    return result


def test_a_study_in_small_goes_the_whole_way_and_tells_of_the_study_as_a_whole(study):
    study.server(VALIDATING)
    study.configure({"dl_config.buffer": "Reservoir", "dl_config.per_server_watermark": 20})
    result = fast_dev_run(study)
    assert result.returncode == 0, result.stderr + study.logs()
    assert study.server_log.count("created client.") == 1
    assert study.report["batches"] == 2
    assert study.seen["calls"] == [
        "prepare_training_attributes",
        "on_train_start",
        "validation_step 'some' 0 2",
        "checkpoint 2",
        "on_train_end",
    ]
    assert "whole study" in result.stdout
    assert "4 simulations, 2 at once" in result.stdout
    again = study.run("--fast-dev-run")
    assert again.returncode == 0, again.stderr


def test_a_client_that_would_take_long_is_extrapolated_and_ended(study):
    study.solver(SLOW)
    study.configure({"study_options.nb_time_steps": 1000})
    result = fast_dev_run(study)
    assert result.returncode == 0, result.stderr + study.logs()
    assert "from its first time steps" in result.stdout
    assert study.balance()["dropped"]["stopped_early"] > 0


def test_a_client_that_fails_ends_the_study_in_small_with_its_last_words(study):
    study.solver("sys.exit('no mesh')")
    result = fast_dev_run(study)
    assert result.returncode == 1
    assert "no mesh" in result.stderr
    assert "whole study" not in result.stdout


def test_a_server_of_two_ranks_is_tried_with_both(study, monkeypatch):
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    study.configure(
        {
            "launcher_config.scheduler": "openmpi",
            "launcher_config.scheduler_arg_server": ["--oversubscribe", "-n", "2"],
            "dl_config.batch_size": 1,
        }
    )
    result = fast_dev_run(study)
    assert result.returncode == 0, result.stderr + study.logs()
    assert [rank["batches"] for rank in study.report["ranks"]] == [2, 2]
    assert "whole study" in result.stdout
