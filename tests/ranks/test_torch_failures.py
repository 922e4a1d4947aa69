"""What ends one rank of data-parallel training ends all, within seconds, and says why."""

import subprocess
import sys
import time

import pytest
from under_mpi import SOON, environment, mpiexec

PROGRAM = """
import os, signal, sys, time
import torch
from fed_torch import Fed, train

class Study(Fed):
    nb_batches = (100,)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 5 and self.rank == self.comm_size - 1:
            open("now", "w").close()
            {fault}
        return loss

try:
    train(Study)
except BaseException as error:
    with open(f"end.{{os.environ.get('OMPI_COMM_WORLD_RANK', 0)}}", "w") as file:
        file.write(f"{{type(error).__name__}}: {{error}}")
    # Not through MPI's own end, in which ranks wait for each other.
    os._exit(1)
"""

AT_ONCE = 30.0
"""Seconds within which all ranks have ended after the fault, on a loaded machine."""


@pytest.fixture
def fail(tmp_path):
    """Run a program with a fault on its last rank; returns (output, what each rank said in the end)."""

    def fail(nb_ranks, fault):
        script = tmp_path / "program.py"
        script.write_text(PROGRAM.format(fault=fault))
        process = subprocess.Popen(
            mpiexec(nb_ranks, sys.executable, str(script)),
            env=environment(nb_ranks),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            deadline = time.monotonic() + SOON
            while not (tmp_path / "now").exists():
                assert time.monotonic() < deadline
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.05)
            output, _ = process.communicate(timeout=AT_ONCE)
        finally:
            process.kill()
        assert process.returncode != 0
        ends = [tmp_path / f"end.{rank}" for rank in range(nb_ranks)]
        return output, [end.read_text() if end.exists() else "" for end in ends]

    return fail


def test_a_killed_rank_ends_all(fail):
    output, _ = fail(3, "os.kill(os.getpid(), signal.SIGKILL)")
    assert "signal 9" in output


def test_an_exception_on_one_rank_ends_the_others_that_wait_for_its_gradients(fail):
    _, ends = fail(2, "raise ValueError('the pressure is negative')")
    assert ends[1] == "ValueError: the pressure is negative"


def test_a_loss_that_is_nan_ends_all_ranks(fail):
    _, ends = fail(2, "return loss * float('nan')")
    assert "training_step returned a loss of nan at batch 5" in ends[1]
