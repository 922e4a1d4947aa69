"""Ranks that join when a server starts: one that dies or does not come ends all, and is named."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from server_process import CONFIGURATION, KEY, STUDY
from under_mpi import HELPERS, SOON, environment, mpiexec

from melissa.launcher.message import Failure, decode
from melissa.utility.channel import ChannelClosed, Listener

AT_ONCE = 20.0
"""Seconds within which all ranks have ended after the fault, on a loaded machine."""


class Start:
    """A server of three ranks that starts, and the launcher, which the test plays."""

    def __init__(self, folder, place, fault, faulty_rank=2, options=()):
        self.folder, self.faulty_rank = folder, faulty_rank
        (folder / "out").mkdir()
        (folder / "study.py").write_text(STUDY)
        (folder / "study.json").write_text(json.dumps(CONFIGURATION))
        (folder / "key").write_text(KEY.hex())
        self.failures = []
        self._over = threading.Event()
        self._listener = Listener("127.0.0.1", KEY, 1)
        self._launcher = threading.Thread(target=self._listen)
        self._launcher.start()
        program = [sys.executable, str(HELPERS / "joining_rank.py"), place, fault, str(faulty_rank)]
        self.process = subprocess.Popen(
            mpiexec(3, *options, *program),
            env=environment(
                3,
                MELISSA_LAUNCHER_ADDRESS=self._listener.address,
                MELISSA_KEY_FILE=str(folder / "key"),
                MELISSA_STUDY_EPOCH="1",
                MELISSA_OUTPUT_DIR=str(folder / "out"),
            ),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _listen(self):
        channels = []
        while not self._over.is_set():
            channel = self._listener.accept(0.05)
            if channel is not None and channel.role == "server":
                channels.append(channel)
            for channel in list(channels):
                try:
                    while (received := channel.recv(0)) is not None:
                        if isinstance(message := decode(received), Failure):
                            self.failures.append(message)
                except ChannelClosed:
                    channels.remove(channel)

    def wait_for_fault(self):
        self.wait_until((self.folder / f"stopped.{self.faulty_rank}").exists)

    def wait_until(self, condition):
        deadline = time.monotonic() + SOON
        while not condition():
            assert time.monotonic() < deadline, self.logs()
            assert self.process.poll() is None, self.process.communicate()[0] + self.logs()
            time.sleep(0.05)

    def signal(self, rank, number):
        os.kill(int((self.folder / f"pid.{rank}").read_text()), number)

    def end(self):
        """Wait for the end, which must come at once; returns the exit status."""
        try:
            self.output, _ = self.process.communicate(timeout=AT_ONCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server hangs\n{self.logs()}") from None
        return self.process.returncode

    def wait_for_failure(self):
        """Return what the launcher was told; its side may read that after the server's end."""
        deadline = time.monotonic() + SOON
        while not self.failures:
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.05)
        (told,) = self.failures
        return told

    def log(self, rank):
        path = self.folder / "out" / f"melissa_server_{rank}.log"
        return path.read_text() if path.exists() else ""

    def logs(self):
        return "\n".join(f"---- rank {rank}\n{self.log(rank)}" for rank in range(3))

    def close(self):
        self.process.kill()
        self.process.communicate()
        self._over.set()
        self._launcher.join()
        self._listener.close()


@pytest.fixture
def start(tmp_path):
    started = []

    def start(*fault, **more):
        started.append(Start(tmp_path, *fault, **more))
        return started[-1]

    yield start
    for each in started:
        each.close()


PLACES = ["before MPI", "before the broadcast", "before it connects", "after its first channel"]


@pytest.mark.parametrize("place", PLACES)
def test_a_rank_that_does_not_come_is_named_and_ends_all(start, place):
    server = start(place, "hangs")
    server.wait_for_fault()
    assert server.end() not in (0, None)
    assert "WARNING server rank 2 has not come for" in server.log(0), server.logs()
    assert "server rank 2 has not come within" in server.log(0)
    if place in ("before MPI", "before the broadcast"):  # later rank 0 alone waits for it
        assert "WARNING server rank 2 has not come for" in server.log(1)
    if place != "before MPI":  # until then no rank knows that it is rank 0, which speaks to the launcher
        told = server.wait_for_failure()
        assert told.is_death
        assert "server rank 2 has not come" in told.message


@pytest.mark.parametrize("place", PLACES)
def test_a_rank_that_dies_ends_all(start, place):
    server = start(place, "dies")
    server.wait_for_fault()
    assert server.end() not in (0, None)


def test_a_rank_that_dies_is_named_also_where_mpiexec_does_not_end_the_others(start):
    server = start("after its first channel", "dies", options=["--enable-recovery"])
    server.wait_for_fault()
    server.end()
    told = server.wait_for_failure()
    assert told.is_death
    assert "server rank 2 (process " in told.message
    assert "it has died while the ranks joined" in told.message


@pytest.mark.parametrize("place", ["before MPI", "before the broadcast", "before it connects"])
def test_sigterm_ends_a_rank_that_waits_for_another(start, place):
    server = start(place, "dawdles")
    server.wait_for_fault()
    server.wait_until(lambda: "others wait" in server.log(0))
    server.signal(0, signal.SIGTERM)
    assert server.end() == 128 + signal.SIGTERM
    assert "SIGTERM came" in server.log(0)
