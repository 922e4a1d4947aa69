"""A server rank as the launcher starts it; on its way to the others one of them stops: by dying, or for good.

``python joining_rank.py PLACE FAULT FAULTY_RANK``
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from melissa.server import __main__ as server
from melissa.server.ranks import joining
from melissa.server.roll_call import RankWait, launched_rank

place, fault, faulty_rank = sys.argv[1:]
rank, here = launched_rank(), Path.cwd()
out = Path(os.environ["MELISSA_OUTPUT_DIR"])


def stop_at(here):
    if here == place:
        Path(f"stopped.{rank}").touch()
        if fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)


def make_faulty():
    connect, process_rank = joining.connect, joining.process_rank

    def stopping_process_rank():
        stop_at("before the broadcast")
        return process_rank()

    def stopping_connect(address, key, epoch, role):
        stop_at("before it connects" if role == "rank-life" else "after its first channel")
        return connect(address, key, epoch, role)

    joining.process_rank, joining.connect = stopping_process_rank, stopping_connect
    stop_at("before MPI")


def lose_patience():
    """When the other one has stopped: let all who wait for it say so, then end the wait."""
    while not (here / f"stopped.{faulty_rank}").exists():
        time.sleep(0.05)
    RankWait.REMINDER_PERIOD = 0.1
    if fault == "hangs":
        waiting = [0] if place in ("before it connects", "after its first channel") else [0, 1]
        logs = [out / f"melissa_server_{each}.log" for each in waiting]
        while not all(log.exists() and "others wait" in log.read_text() for log in logs):
            time.sleep(0.05)
        RankWait.LIMIT = 0.0


Path(f"pid.{rank}").write_text(str(os.getpid()))
if rank == int(faulty_rank):
    make_faulty()
else:
    threading.Thread(target=lose_patience, daemon=True).start()
sys.exit(server.main(["--config_name", "study", "--project_dir", str(here)]))
