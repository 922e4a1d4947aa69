"""A launcher inside the test's process: clients that a server asks for are threads with real connections."""

import queue
import shlex
import threading
import time
import traceback
from pathlib import Path

import numpy as np

from melissa._melissa import Client
from melissa.exceptions import StudyStopped
from melissa.launcher.message import (
    CancelClient,
    Failure,
    Finished,
    JobUpdate,
    Ping,
    Progress,
    Register,
    State,
    Stop,
    SubmitClient,
)

KEY = bytes(range(32))


def send_ramp(client, parameters, steps=5, size=8, simulation_id=0):
    """A solver: every value of a step is 1000 * first parameter + step."""
    client.init("u", size, "float64")
    for step in range(steps):
        client.send("u", np.full(size, 1000.0 * parameters[0] + step))
    client.finalize()


class PlayedLauncher:
    """Takes the place of a `LauncherLink`.

    `solver(client, parameters, simulation_id, attempt)` runs in a thread for each client; what it raises is
    the client's failure.
    """

    def __init__(self, solver):
        self.solver = solver
        self.failure_told = False
        self.received = []
        self.updates = queue.Queue()
        self.addresses = None
        self.threads = []
        self.tokens = {}
        self._last_ping = 0.0

    def send(self, message):
        self.received.append(message)
        match message:
            case Register():
                self.addresses = message.addresses
            case SubmitClient():
                thread = threading.Thread(target=self._run, args=(message,), daemon=True)
                self.threads.append(thread)
                thread.start()
            case CancelClient():
                self._end(message, State.FAILED, -15, "cancelled")

    def receive(self, timeout):
        now = time.monotonic()
        if now - self._last_ping > 0.5:
            self._last_ping = now
            return Ping()
        try:
            return self.updates.get_nowait()
        except queue.Empty:
            return None

    def close(self):
        pass

    def stop(self, reason):
        self.updates.put(Stop(reason))

    def of(self, kind):
        return [message for message in self.received if isinstance(message, kind)]

    @property
    def report(self):
        return self.of(Finished)[-1].report

    @property
    def failures(self):
        return self.of(Failure)

    @property
    def last_progress(self):
        return self.of(Progress)[-1].values

    def _run(self, submit):
        self._end(submit, State.RUNNING)
        last_line = Path(submit.script).read_text().splitlines()[-1]
        tokens = shlex.split(last_line)[2:]
        self.tokens.setdefault(submit.simulation_id, []).append(tokens)
        try:
            client = Client(
                self.addresses[0],
                KEY,
                study_epoch=1,
                simulation_id=submit.simulation_id,
                attempt=submit.attempt,
            )
            self.solver(client, [float(token) for token in tokens], submit.simulation_id, submit.attempt)
        except StudyStopped:
            self._end(submit, State.TERMINATED, 0)
        except BaseException:
            self._end(submit, State.FAILED, 1, traceback.format_exc())
        else:
            self._end(submit, State.TERMINATED, 0)

    def _end(self, client, state, exit_code=None, error=""):
        self.updates.put(JobUpdate(f"{client.simulation_id}.{client.attempt}", state, exit_code, error))
