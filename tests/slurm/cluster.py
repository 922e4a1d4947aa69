"""A real Slurm of one node, for tests: its own daemons, ports and files, beside whatever cluster there is.

As a program it starts one and runs a command in it: ``python cluster.py COMMAND...``
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
SYSTEM_FOLDERS = ("/usr/sbin", "/sbin")  # where daemons are, which a user's PATH may leave out
START_TIMEOUT = 30.0

CONFIGURATION = """\
ClusterName=melissa-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MpiDefault=pmix
ReturnToService=2
KillWait=2
MinJobAge=60
FirstJobId={first_job}
InactiveLimit=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=1000 State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Return why there cannot be a cluster here, in words; None when there can."""
    if os.getuid() != 0:
        return "only root can run a Slurm of its own"
    absent = [name for name in PROGRAMS if _program(name) is None]
    return f"not installed: {', '.join(absent)} (Debian: slurm-wlm munge)" if absent else None


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS]))


def _free_port() -> int:
    """Return a port that is free, and that no connection gets by chance before the daemon starts."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("", port))
            return port


def _end_with_parent() -> None:
    """Have the kernel end this process with the one that started it: tests may be killed themselves."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Cluster:
    """The daemons, in a temporary folder; a context. `environment` is what Slurm's commands need."""

    def __init__(self, cores: int = 8) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="melissa-slurm-"))
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._cores = cores
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        """Start the daemons; return when the node takes jobs."""
        try:
            for name in ("munge", "state", "spool"):
                (self.folder / name).mkdir(mode=0o700)
            # The socket is for everybody, and munged insists on a way to it that nobody else can change.
            for folder in (self.folder, self.folder / "munge"):
                folder.chmod(0o755)
            text = CONFIGURATION.format(
                host=socket.gethostname(),
                folder=self.folder,
                # PMIx names folders in /tmp after the job's number, and leaves those of killed jobs there.
                first_job=random.randrange(1000, 60_000_000),
                cores=self._cores,
                controller_port=_free_port(),
                node_port=_free_port(),
            )
            (self.folder / "slurm.conf").write_text(text)
            self._start_munge()
            self._start("slurmctld", "-D", "-i", "-f", self.environment["SLURM_CONF"])
            self._start("slurmd", "-D", "-f", self.environment["SLURM_CONF"])
            self._wait(lambda: self.run("sinfo", "-h", "-o", "%t").strip() == "idle", "an idle node")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the daemons and all jobs."""
        self.close()

    def run(self, *command: str) -> str:
        """Return what a command of Slurm prints."""
        told = subprocess.run(
            command,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return told.stdout

    def clear(self) -> None:
        """End all jobs, and wait for that."""
        if self.run("squeue", "-h"):
            self.run("scancel", "--quiet", "--user=root")
        deadline = time.monotonic() + START_TIMEOUT
        while self.run("squeue", "-h") and time.monotonic() < deadline:
            time.sleep(0.2)

    def close(self) -> None:
        """End all jobs, then the daemons, and remove the folder."""
        if len(self._daemons) == 3:
            self.clear()
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(10.0)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._start(
            "munged",
            "--foreground",
            "--force",  # as root, and with a key of its own
            f"--key-file={key}",
            f"--socket={folder / 'socket'}",
            f"--pid-file={folder / 'pid'}",
            f"--seed-file={folder / 'seed'}",
        )
        self._wait((folder / "socket").exists, "munged's socket")

    def _start(self, name: str, *arguments: str) -> None:
        program = _program(name)
        assert program is not None, f"{name} is not installed"
        with (self.folder / f"{name}.out").open("wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    [program, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=os.environ | self.environment,
                    start_new_session=True,
                    preexec_fn=_end_with_parent,
                )
            )

    def _wait(self, condition: object, what: str) -> None:
        assert callable(condition)
        deadline = time.monotonic() + START_TIMEOUT
        while not condition():
            ended = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"no {what} within {START_TIMEOUT:g} s; ended: {ended}\n{self._logs()}")
            time.sleep(0.1)

    def _logs(self) -> str:
        files = [*self.folder.glob("*.out"), *self.folder.glob("*.log")]
        return "\n".join(f"---- {file.name}\n{file.read_text()[-3000:]}" for file in files)


if __name__ == "__main__":
    if (reason := missing()) is not None:
        sys.exit(f"no Slurm: {reason}")
    with Cluster() as cluster:
        sys.exit(subprocess.run(sys.argv[1:], env=os.environ | cluster.environment, check=False).returncode)
