"""Processes that a test started, however deep, and a local scheduler."""

import contextlib
import os
import select
import time
import uuid
from pathlib import Path

import pytest

from melissa.scheduler.job import Job, JobRequest
from melissa.scheduler.local import LocalScheduler
from melissa.scheduler.scheduler import Scheduler

MARK = "MELISSA_TEST_MARK"
SOON = 60.0
"""Seconds within which everything that a test waits for must have come: a loaded machine is slow."""


class Processes:
    """All live processes that descend from jobs of one test: found by a mark in their environment."""

    def __init__(self) -> None:
        self.environment = {MARK: uuid.uuid4().hex}

    def alive(self) -> list[int]:
        wanted = f"{MARK}={self.environment[MARK]}".encode()
        found = []
        for path in Path("/proc").iterdir():
            if path.name.isdecimal():
                try:
                    if wanted in (path / "environ").read_bytes().split(b"\0"):
                        found.append(int(path.name))
                except OSError:
                    continue
        return found

    def wait_for(self, number: int, timeout: float = SOON) -> None:
        """Wait until exactly `number` of them are alive."""
        deadline = time.monotonic() + timeout
        while len(alive := self.alive()) != number:
            assert time.monotonic() < deadline, f"{number} processes expected, alive: {alive}"
            time.sleep(0.02)


@pytest.fixture
def processes():
    found = Processes()
    yield found
    for pid in found.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)


class Jobs:
    """Submits shell commands to a scheduler, and waits for what becomes of them."""

    def __init__(self, folder: Path, processes: Processes, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.scheduler.start()
        self._folder = folder
        self._processes = processes
        self._all: list[Job] = []

    @property
    def supervisor(self) -> int:
        return self.scheduler._supervisor.pid

    def submit(self, command, name="job", **request) -> Job:
        if isinstance(command, str):
            command = ["/bin/sh", "-c", command]
        request = {"directory": self._folder, "environment": self._processes.environment} | request
        job = self.scheduler.submit(JobRequest(name, command, **request))
        self._all.append(job)
        return job

    def wait(self, condition, timeout: float = SOON) -> None:
        """Poll until `condition()` holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, [(job.name, job.state, job.error) for job in self._all]
            descriptor = self.scheduler.fileno()
            select.select([] if descriptor is None else [descriptor], [], [], 0.1)
            self.scheduler.poll(self._all)

    def wait_for_end(self, job: Job, timeout: float = SOON) -> Job:
        self.wait(lambda: not job.is_alive, timeout)
        return job


@pytest.fixture
def make_jobs(tmp_path, processes):
    """Return what makes `Jobs` of a scheduler; it is closed after the test."""
    made = []

    def make(scheduler):
        made.append(Jobs(tmp_path, processes, scheduler))
        return made[-1]

    yield make
    for jobs in made:
        jobs.scheduler.close(0.0)


@pytest.fixture
def jobs(make_jobs):
    return make_jobs(LocalScheduler())
