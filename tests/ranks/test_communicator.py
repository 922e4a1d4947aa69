"""What training says through MPI: real ranks of a real mpiexec."""

import subprocess
import sys

import pytest
from under_mpi import SOON, environment, run


@pytest.mark.parametrize("nb_ranks", [2, 3])
def test_ranks_put_their_flags_together(tmp_path, nb_ranks):
    result, said = run(
        tmp_path,
        nb_ranks,
        """
        for turn in range(200):
            request = comm.flags(1 << comm.rank if turn % 2 else 0, turn / 7 + comm.rank)
            if turn % 50 == comm.rank:
                time.sleep(0.02)
            assert request.result() == ((1 << comm.size) - 1 if turn % 2 else 0, turn / 7), turn
        assert comm.any(comm.rank == comm.size - 1)
        assert not comm.any(False)
        say(comm.allgather(comm.rank * 10), comm.bcast(f"from {comm.rank}"))
        """,
    )
    assert result.returncode == 0, result.stderr
    assert said == [[f"{[10 * rank for rank in range(nb_ranks)]} from 0"]] * nb_ranks


def test_a_value_of_more_bytes_than_one_message_takes_goes_in_several(tmp_path):
    result, said = run(
        tmp_path,
        3,
        """
        comm.CHUNK = 1000
        # What goes through MPI's blocking form has one message, whatever its size.
        comm.mpi_comm = type("Polled", (), {
            name: staticmethod(getattr(comm.mpi_comm, name)) for name in ("Ibarrier", "Ibcast")
        })
        for size in (0, 1, 960, 1000, 1024, 12345):
            content = bytes(index % 251 for index in range(size))
            got = comm.bcast(content if comm.rank == 1 else None, root=1)
            assert got == content, (size, len(got))
        say(comm.bcast({"rank": comm.rank}))
        """,
    )
    assert result.returncode == 0, result.stderr
    assert said == [["{'rank': 0}"]] * 3


def test_a_rank_that_waits_for_others_notices_a_failure(tmp_path):
    result, said = run(
        tmp_path,
        2,
        """
        import os
        start = time.monotonic()
        def check():
            if time.monotonic() - start > 0.3:
                raise RuntimeError("the study has failed")
        comm.check = check
        comm.barrier()
        if comm.rank == 0:
            try:
                comm.flags(1).result()
            except RuntimeError as error:
                say(error, time.monotonic() - start < 5.0)
        else:
            time.sleep(1.0)
        os._exit(0)
        """,
    )
    assert said == [["the study has failed True"], []], result.stderr


def test_an_mpiexec_of_another_mpi_starts_ranks_that_are_alone_which_is_an_error(tmp_path):
    # Started without mpiexec, a process is the only one of its MPI, as under the mpiexec of another MPI.
    code = "from melissa.server.communicator import make_communicator; make_communicator()"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(2),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )
    assert result.returncode != 0
    assert "the server has 2 ranks" in result.stderr
    assert "MPI has started 1" in result.stderr


LOOP = """
    from types import SimpleNamespace
    from melissa.server.deep_learning.base_dl_server import DeepMelissaServer
    from melissa.server.deep_learning.checkpointing import BatchesAhead
    from melissa.server.deep_learning.flags import BatchFlags
    from melissa.server.deep_learning.lanes import Delivery
    from melissa.server.deep_learning.training_loop import run_training
    from melissa.server.ending import StudyEnding

    class Source:
        wait_seconds = 0.0
        def __init__(self, batches):
            self.batches = iter(batches)
        def next(self):
            batch = next(self.batches, None)
            return None if batch is None else Delivery(batch, [batch])
        def stop(self):
            pass

    class Server:
        batch_offset, checkpoint_interval, nb_batches_update, comm_size = 0, 0, 100, comm.size
        _progress = SimpleNamespace()
        _loss_check = SimpleNamespace(returned=lambda *about: None)
        def __init__(self):
            self._ending = StudyEnding()
            self._flags = BatchFlags(comm, self._ending)
            self._ahead = BatchesAhead()
            self.comm = comm
            self._accounting = SimpleNamespace(trained=self.trained, waited=lambda seconds: None)
            self.done = []
        def trained(self, samples):
            self.done += samples
        def _training_step(self, batch, batch_idx):
            # The gradients' all-reduce: a rank that comes here alone waits for ever.
            comm.barrier()
        def other_processes_finished(self, batch_idx):
            return not self._flags.agree(self._has_batch)
        def _drain(self, source, delivery, batch_idx):
            return batch_idx
        def _checkpoint_on_request(self, batch_idx):
            self._ending.checkpoint_wanted = False
            say("checkpoint after", batch_idx)
        def _nothing(self, batch_idx):
            pass
        _on_batch_start = _on_batch_end = _monitor_batch = _validation = _checkpoint = _nothing
"""


@pytest.mark.parametrize("nb_batches", [(10, 7), (7, 10), (0, 3), (4, 4)])
def test_all_ranks_stop_when_one_is_dry(tmp_path, nb_batches):
    result, said = run(
        tmp_path,
        2,
        LOOP
        + f"""
    server = Server()
    run_training(server, Source(range({nb_batches}[comm.rank])))
    server._flags.leave()
    say(server.done)
        """,
    )
    assert result.returncode == 0, result.stderr
    assert said == [[str(list(range(min(nb_batches))))]] * 2


def test_all_ranks_write_the_checkpoint_that_one_was_asked_for_after_the_same_batch(tmp_path):
    result, said = run(
        tmp_path,
        3,
        LOOP
        + """
    server = Server()
    if comm.rank == 1:
        def step(batch, batch_idx):
            comm.barrier()
            if batch_idx == 4:
                server._ending.checkpoint_wanted = True
        server._training_step = step
    run_training(server, Source(range(9)))
    say(len(server.done))
        """,
    )
    assert result.returncode == 0, result.stderr
    assert said == [["checkpoint after 5", "9"]] * 3


def test_a_loop_of_the_users_own_learns_that_another_rank_has_left_its_loop(tmp_path):
    result, said = run(
        tmp_path,
        2,
        """
        from melissa.server.deep_learning.flags import BatchFlags
        from melissa.server.ending import StudyEnding
        flags = BatchFlags(comm, StudyEnding())
        trained = 0
        for batch_idx in range((10, 7)[comm.rank]):
            if not flags.agree(True):
                break
            comm.barrier()
            trained += 1
        flags.leave()
        say(trained)
        """,
    )
    assert result.returncode == 0, result.stderr
    assert said == [["7"], ["7"]]
