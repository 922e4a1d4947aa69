"""What is the same on all server ranks, and what each has of its own: progress, logs, validation."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SERVER = """
    class Server(PlainServer):
        def training_step(self, batch, batch_idx):
            self.shares = [*getattr(self, "shares", []), self.progress]
            super().training_step(batch, batch_idx)

        def validation_step(self, batch, valid_batch_idx, batch_idx):
            assert self.rank == 0
            self.validated = getattr(self, "validated", set()) | {key[0] for key in batch[1]}

        def on_train_end(self):
            seen = {
                "shares": [*self.shares, self.progress],
                "trained": sorted({int(key[0]) for keys in self.batches for key in keys}),
                "validated": sorted(map(int, getattr(self, "validated", ()))),
            }
            with open(f"seen.{self.rank}.json", "w") as file:
                json.dump(seen, file)
"""


@pytest.fixture
def on_two_ranks(study, monkeypatch):
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    study.server(SERVER)
    study.solver("solve(40)")
    study.configure(
        {
            "study_options.nb_time_steps": 40,
            "study_options.validation_sweep_size": 1,
            "dl_config.nb_batches_update": 2,
            "dl_config.buffer": "Reservoir",
            "dl_config.per_server_watermark": 10,
            "launcher_config.scheduler": "openmpi",
            "launcher_config.job_limit": 3,
            "launcher_config.scheduler_arg_server": ["--oversubscribe", "-n", "2"],
        }
    )
    return study


def test_ranks_agree_on_progress_log_for_themselves_and_rank_0_alone_validates(on_two_ranks):
    study = on_two_ranks
    study.succeed()
    seen = [json.loads(study.read(f"seen.{rank}.json")) for rank in range(2)]
    assert seen[0]["shares"] == seen[1]["shares"]
    assert seen[0]["shares"] == sorted(seen[0]["shares"])
    assert seen[0]["shares"][-1] == 1.0
    assert seen[0]["trained"] == seen[1]["trained"] == [0, 1, 2, 3]
    assert seen[0]["validated"] == [4]
    for rank in range(2):
        events = EventAccumulator(str(study.output / "tensorboard" / f"gpu_{rank}"))
        events.Reload()
        tags = set(events.Tags()["scalars"])
        assert {"samples_per_second", "buffer_size", "put_time", "put_get_inc", "trainer_wait_share"} <= tags
        assert ("samples_per_second_all_ranks" in tags) == (rank == 0)


def test_ranks_do_not_take_one_for_dead_that_validates_for_long(on_two_ranks):
    study = on_two_ranks
    study.server(
        """
        import ctypes


        class Server(PlainServer):
            def prepare_training_attributes(self):
                self.valid_dataloader = ["hold the interpreter"]
                return super().prepare_training_attributes()

            def validation_step(self, batch, valid_batch_idx, batch_idx):
                ctypes.PyDLL(None).sleep(4)

            def on_train_end(self):
                pass
        """
    )
    # Launcher and ranks take a server, or a rank, for dead that they do not hear for 2 s.
    study.configure(
        {
            "launcher_config.server_timeout": 1.0,
            "study_options.validation_sweep_size": 0,
            "dl_config.buffer": "FIFO",
            "dl_config.nb_batches_update": 10,
        }
    )
    study.succeed()
    assert "is gone" not in study.server_log
    assert study.report["batches"] >= 20
