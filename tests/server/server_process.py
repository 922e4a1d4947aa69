"""A ``melissa-server`` as the launcher runs it, a process of its own; the test plays the launcher."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
from played_launcher import KEY

from melissa._melissa import Client
from melissa.exceptions import StudyStopped
from melissa.launcher.message import JobUpdate, Ping, Register, State, SubmitClient, decode
from melissa.utility.channel import ChannelClosed, Listener

SOON = 60.0
"""Seconds within which everything that a test waits for must have come: a loaded machine is slow."""

CONFIGURATION = {
    "server_filename": "study.py",
    "server_class": "Study",
    "output_dir": "out",
    "study_options": {
        "field_names": ["u"],
        "parameter_sweep_size": 3,
        "nb_parameters": 1,
        "nb_time_steps": 4,
    },
    "dl_config": {"batch_size": 2, "buffer_size": 8, "tensorboard": False},
    "launcher_config": {"job_limit": 4, "server_timeout": 2.0},
    "client_config": {"executable_command": "true"},
}

STUDY = """
import time
from melissa.server.deep_learning.base_dl_server import DeepMelissaServer
from melissa.server.parameters import ParameterSamplerType

class Study(DeepMelissaServer):
    def __init__(self, config_dict):
        super().__init__(config_dict)
        self.set_parameter_sampler(ParameterSamplerType.HALTON, l_bounds=[0.0], u_bounds=[1.0])
    def prepare_training_attributes(self):
        return None, None
    def process_simulation_data(self, data, config_dict):
        return data.data["u"], data.time_step
    def training_step(self, batch, batch_idx):
        pass
    def checkpoint(self, batch_idx, path="checkpoints"):
        pass
    def _setup_environment_slurm(self): ...
    def _load_model_from_checkpoint(self): ...
"""


class ServerProcess:
    """A melissa-server, and what it sends to the launcher that the test plays."""

    def __init__(self, folder, nb_steps=4, study=STUDY, epoch=1, pause=0.0, **changes):
        (folder / "out").mkdir(exist_ok=True)
        (folder / "study.py").write_text(study)
        (folder / "study.json").write_text(json.dumps(CONFIGURATION | changes))
        (folder / "key").write_text(KEY.hex())
        self.folder, self.nb_steps, self.epoch, self.pause = folder, nb_steps, epoch, pause
        self.listener = Listener("127.0.0.1", KEY, epoch)
        self.received = []
        self.addresses = None
        environment = os.environ | {
            "MELISSA_LAUNCHER_ADDRESS": self.listener.address,
            "MELISSA_KEY_FILE": str(folder / "key"),
            "MELISSA_STUDY_EPOCH": str(epoch),
            "MELISSA_RESTART": str(epoch - 1),
            "MELISSA_OUTPUT_DIR": str(folder / "out"),
        }
        command = [sys.executable, "-P", "-m", "melissa.server", "--project_dir", str(folder)]
        self.process = subprocess.Popen(
            [*command, "--config_name", "study"], env=environment, stderr=subprocess.PIPE, text=True
        )
        self.channel = self.listener.accept(SOON)
        assert self.channel is not None
        self.heartbeat = self.listener.accept(SOON)
        assert self.heartbeat is not None
        assert (self.channel.role, self.heartbeat.role) == ("server", "heartbeat")

    def serve(self, until=lambda message: False, timeout=SOON):
        """Play the launcher until the server is gone, or until a message; returns that message."""
        deadline = time.monotonic() + timeout
        last_ping = 0.0
        while time.monotonic() < deadline:
            try:
                if time.monotonic() - last_ping > 0.3:
                    last_ping = time.monotonic()
                    self.channel.send(Ping().to_dict())
                received = self.channel.recv(0.1)
            except ChannelClosed:
                return None
            if received is None:
                continue
            message = decode(received)
            self.received.append(message)
            if isinstance(message, Register):
                self.addresses = message.addresses
            elif isinstance(message, SubmitClient):
                threading.Thread(target=self._run, args=(message,), daemon=True).start()
            if until(message):
                return message
        raise AssertionError("the server does not end")

    def _run(self, submit):
        job = f"{submit.simulation_id}.{submit.attempt}"
        self._tell(JobUpdate(job, State.RUNNING))
        try:
            client = Client(
                self.addresses[0],
                KEY,
                study_epoch=self.epoch,
                simulation_id=submit.simulation_id,
                attempt=submit.attempt,
            )
            client.init("u", 4, "float64")
            for step in range(self.nb_steps):
                client.send("u", np.full(4, step))
                time.sleep(self.pause)
            client.finalize()
            self._tell(JobUpdate(job, State.TERMINATED, 0))
        except StudyStopped:
            self._tell(JobUpdate(job, State.TERMINATED, 0))
        except Exception as error:
            self._tell(JobUpdate(job, State.FAILED, 1, str(error)))

    def _tell(self, message):
        with contextlib.suppress(ChannelClosed):  # the server has ended meanwhile
            self.channel.send(message.to_dict())

    def end(self, timeout=SOON):
        """Wait for the process; returns its exit status."""
        status = self.process.wait(timeout)
        self.stderr = self.process.stderr.read()
        self.log = (self.folder / "out" / "melissa_server_0.log").read_text()
        return status

    def of(self, kind):
        return [message for message in self.received if isinstance(message, kind)]

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        self.channel.close()
        self.heartbeat.close()
        self.listener.close()
