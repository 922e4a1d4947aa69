"""The clients' jobs: those that wait for a place among the jobs alive at once, and those that run."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from melissa.launcher.message import CancelClient, JobUpdate, SubmitClient, job_id
from melissa.launcher.study_folder import StudyFolder
from melissa.scheduler.job import Job, JobRequest, State
from melissa.scheduler.scheduler import Scheduler
from melissa.utility.process import describe_exit, last_lines

__all__ = ["ClientJobs"]

logger = logging.getLogger("melissa")

CANCEL_GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL for a cancelled client."""
_STDERR_LINES = 15
_WARNINGS = 10


class ClientJobs:
    """Submits clients in the order in which the server asks for them, at most `limit` alive at once."""

    def __init__(
        self,
        scheduler: Scheduler,
        folder: StudyFolder,
        environment: Mapping[str, str],
        *,
        limit: int,
        keep_output: bool,
    ) -> None:
        """Take the scheduler, the folder to run in, and the environment that all clients get."""
        self._scheduler = scheduler
        self._folder = folder
        self._environment = dict(environment)
        self._limit = limit
        self._keep_output = keep_output
        self._waiting: deque[SubmitClient] = deque()
        self._alive: dict[Job, SubmitClient] = {}
        self._cancelled: set[Job] = set()
        self._failures = 0
        self._is_ending = False
        self._shell = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"

    @property
    def alive(self) -> list[Job]:
        """The jobs that have been submitted and have not ended."""
        return list(self._alive)

    def tell_servers(self, addresses: list[str]) -> None:
        """Take the addresses of the server's ranks, rank 0 first; clients find them in their environment."""
        self._environment["MELISSA_SERVER_ADDRESS"] = ",".join(addresses)
        self._environment["MELISSA_SERVER_NODE_NAME"] = addresses[0].rpartition(":")[0]

    def ask(self, client: SubmitClient) -> None:
        """Queue a client, and start it when there is a place."""
        self._waiting.append(client)
        self._fill()

    def cancel(self, client: CancelClient) -> JobUpdate | None:
        """End one attempt of a client; the update to send when it had not even been submitted."""
        name = job_id(client.simulation_id, client.attempt)
        for waiting in self._waiting:
            if job_id(waiting.simulation_id, waiting.attempt) == name:
                self._waiting.remove(waiting)
                logger.info(f"simulation {client.simulation_id}, attempt {client.attempt}: never started")
                return JobUpdate(name, State.FAILED, error="cancelled before it was started")
        jobs = [job for job in self._alive if job.name == name]
        if jobs:
            logger.info(f"simulation {client.simulation_id}, attempt {client.attempt}: the server cancels it")
            self._cancelled.update(jobs)
            self._scheduler.cancel(jobs, CANCEL_GRACE)
        return None

    def cancel_all(self, grace: float) -> None:
        """End all clients; those that wait are never started."""
        self.stop_submitting()
        self._cancelled.update(self._alive)
        self._scheduler.cancel(self._alive, grace)

    def stop_submitting(self) -> None:
        """Start no further client: the study ends."""
        self._waiting.clear()
        self._is_ending = True

    def update(self, job: Job) -> JobUpdate:
        """Take a change of a client's job; return what the server is to know of it."""
        client = self._alive[job]
        who = f"simulation {client.simulation_id}, attempt {client.attempt}"
        error = ""
        if job.is_alive:
            logger.info(f"{who}: {job.state.name.lower()}, {job.identity}")
        else:
            del self._alive[job]
            error = "" if job.state is State.TERMINATED else last_lines(job.error, _STDERR_LINES)
            self._log_end(job, who, error)
            self._fill()
        return JobUpdate(job.name, job.state, job.exit_code, error)

    def _log_end(self, job: Job, who: str, error: str) -> None:
        if job in self._cancelled or job.state is State.TERMINATED:
            self._cancelled.discard(job)
            logger.info(f"{who}: {describe_exit(job.exit_code)}")
            return
        how = "could not be started" if job.state is State.ERROR else describe_exit(job.exit_code)
        said = f":\n{error}" if error else ", and said nothing on stderr"
        if self._is_ending:
            # A client that loses its server fails, too: the terminal shows why the study ends, not that.
            logger.info(f"{who}: {how}{said}")
            return
        # Each failure is in the log; the terminal is spared a thousand of them.
        self._failures += 1
        level = logging.WARNING if self._failures <= _WARNINGS else logging.INFO
        logger.log(level, f"{who}: {how}{said}")
        if self._failures == _WARNINGS:
            logger.warning(f"further failures of simulations stand in {self._folder.log} only")

    def _fill(self) -> None:
        while self._waiting and len(self._alive) < self._limit:
            client = self._waiting.popleft()
            job = self._scheduler.submit(self._request(client))
            self._alive[job] = client
            logger.debug(f"simulation {client.simulation_id}, attempt {client.attempt}: submitted")

    def _request(self, client: SubmitClient) -> JobRequest:
        simulation = str(client.simulation_id)
        own = {
            "MELISSA_SIMU_ID": simulation,
            "MELISSA_SIM_ID": simulation,
            "MELISSA_ATTEMPT": str(client.attempt),
        }
        # Many solvers share the machine: one thread each, unless the user says otherwise.
        threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": "1"}
        output = self._folder.stdout / f"simulation{simulation}"
        return JobRequest(
            name=job_id(client.simulation_id, client.attempt),
            command=[self._shell, client.script],
            directory=self._folder.path,
            environment=threads | self._environment | own | client.environment,
            stdout=output.with_suffix(".out") if self._keep_output else None,
            stderr=output.with_suffix(".err") if self._keep_output else None,
        )
