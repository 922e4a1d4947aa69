"""Stands for the server in tests of the launcher: real process, real channel, and one of many characters.

Started as ``python fake_server.py CHARACTER`` with the environment that the launcher gives to a server.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from melissa.launcher.message import (
    CancelClient,
    Failure,
    Finished,
    JobUpdate,
    Ping,
    Progress,
    Register,
    Stop,
    SubmitClient,
    decode,
)
from melissa.utility.channel import ChannelClosed, connect
from melissa.utility.study_key import read_study_key

OUTPUT = Path(os.environ["MELISSA_OUTPUT_DIR"])
SOLVER = OUTPUT.parent / "solver.sh"
REPORT = {
    "simulations": {"planned": 3, "finished": 3, "failed": 0, "resubmitted": 0},
    "ledger": {
        "declared": 300,
        "trained": 290,
        "dropped": {"client_failed": 0, "stopped_early": 0, "untrained": 10},
        "duplicates_refused": 0,
    },
    "batches": 70,
    "samples_delivered": 700,
    "samples_per_second": 311.0,
    "waits": {"trainer_for_data_s": 0.5, "receiver_for_room_s": 0.0},
    "seconds": 10.0,
    "ranks": [],
    "validation": {"root mean square error": 0.0123},
}


def open_channel():
    key = read_study_key(os.environ["MELISSA_KEY_FILE"])
    address, epoch = os.environ["MELISSA_LAUNCHER_ADDRESS"], int(os.environ["MELISSA_STUDY_EPOCH"])
    return connect(address, key, epoch, "server")


def register(channel):
    channel.send(Register(["127.0.0.1:4711"], os.getpid(), 1).to_dict())


def submit(channel, simulation_id, attempt=1, **environment):
    script = OUTPUT / "client_scripts" / f"client.{simulation_id}.sh"
    script.write_text(f". {SOLVER}\n")
    channel.send(SubmitClient(simulation_id, attempt, str(script), environment).to_dict())


def report_progress(channel, finished, planned):
    values = {
        "simulations_planned": planned,
        "simulations_finished": finished,
        "samples_received": 100 * finished,
        "capacity": 500,
        "losses": {"Loss/train": 0.5},
        "phase": "training",
    }
    channel.send(Progress(values).to_dict())


def wait_for_ends(channel, nb_jobs):
    """Take messages until `nb_jobs` jobs have ended; all updates are written to updates.json."""
    updates = []
    while sum(update.job_state.is_final for update in updates) < nb_jobs:
        received = channel.recv(0.1)
        if received is None:
            channel.send(Ping().to_dict())
        elif isinstance(update := decode(received), JobUpdate):
            updates.append(update)
            report_progress(channel, sum(update.job_state.is_final for update in updates), nb_jobs)
    (OUTPUT / "updates.json").write_text(json.dumps([update.to_dict() for update in updates]))


def live_on(channel, until=lambda received: False):
    """Ping until the launcher is gone, or `until` says so of a message."""
    while True:
        received = channel.recv(0.1)
        if received is not None and until(decode(received)):
            return
        channel.send(Ping().to_dict())


def finish(nb_clients="3"):
    channel = open_channel()
    register(channel)
    for simulation_id in range(int(nb_clients)):
        submit(channel, simulation_id, EXTRA="from the server")
    wait_for_ends(channel, int(nb_clients))
    channel.send(Finished(0, REPORT).to_dict())


def finish_on_two_ranks():
    """Rank 0 speaks for both; the other one ends when it has."""
    assert os.environ["MELISSA_NB_SERVER_RANKS"] == "2"
    if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
        print("rank 1 was here", flush=True)
        while not (OUTPUT / "updates.json").exists():
            time.sleep(0.05)
        return
    channel = open_channel()
    channel.send(Register(["127.0.0.1:4711", "127.0.0.1:4712"], os.getpid(), 2).to_dict())
    submit(channel, 0)
    wait_for_ends(channel, 1)
    channel.send(Finished(0, REPORT).to_dict())


def register_another_number_of_ranks():
    channel = open_channel()
    channel.send(Register(["127.0.0.1:4711", "127.0.0.1:4712"], os.getpid(), 2).to_dict())
    time.sleep(1000)


def die(*lives):
    """Die in each start as `lives` says, one word for each; finish in the start after them.

    "<batches>" reports so many batches first; "early" dies before it registers, by a signal; "exit" by its
    status; "silent" goes on without a word; "terminated" ends in order, by a signal; "rank" tells of a rank
    that is gone.
    """
    restart = int(os.environ["MELISSA_RESTART"])
    assert restart == int(os.environ["MELISSA_STUDY_EPOCH"]) - 1
    if restart >= len(lives):
        finish("1")
        return
    life = lives[restart]
    print(f"last words of start {restart}", file=sys.stderr, flush=True)
    if life == "early":
        os.kill(os.getpid(), signal.SIGKILL)
    if life == "exit":
        sys.exit(7)
    channel = open_channel()
    register(channel)
    submit(channel, restart)
    while not isinstance(decode(channel.recv()), JobUpdate):
        pass
    if life == "silent":
        time.sleep(1000)
    if life == "terminated":
        channel.send(Finished(143, REPORT).to_dict())
        sys.exit(143)
    if life == "rank":
        channel.send(Failure("RankLostError", "rank 1 is gone", is_death=True).to_dict())
        time.sleep(1000)
    channel.send(Progress({"batches": int(life)}).to_dict())
    os.kill(os.getpid(), signal.SIGKILL)


def die_on_two_ranks():
    """Rank 0's mpiexec is killed in the first start, and rank 1 minds nothing; all is well in the second."""
    restart = int(os.environ["MELISSA_RESTART"])
    if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (OUTPUT / f"rank1.{restart}").write_text(str(os.getpid()))
        if restart == 0:
            time.sleep(1000)
        return
    if restart == 0:
        while not (OUTPUT / "rank1.0").exists() or not (OUTPUT / "rank1.0").read_text():
            time.sleep(0.05)
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1000)
    if Path(f"/proc/{(OUTPUT / 'rank1.0').read_text()}").exists():
        (OUTPUT / "overlap").touch()
    channel = open_channel()
    channel.send(Register(["127.0.0.1:4711", "127.0.0.1:4712"], os.getpid(), 2).to_dict())
    channel.send(Finished(0, REPORT).to_dict())


def finish_with_a_crash_after_that():
    finish("1")
    os.kill(os.getpid(), signal.SIGSEGV)


def finish_with_a_client_left():
    channel = open_channel()
    register(channel)
    submit(channel, 0)
    channel.recv()
    channel.send(Finished(0, REPORT).to_dict())


def finish_and_hang():
    finish("1")
    time.sleep(1000)


def resubmit():
    channel = open_channel()
    register(channel)
    for attempt in (1, 2):
        submit(channel, 0, attempt)
        wait_for_ends(channel, 1)
    channel.send(Finished(0, REPORT).to_dict())


def cancel():
    """Submit three, of which two fit; cancel one that runs and the one that waits."""
    channel = open_channel()
    register(channel)
    for simulation_id in range(3):
        submit(channel, simulation_id)
    running = 0
    while running < 2:
        received = decode(channel.recv())
        running += isinstance(received, JobUpdate)
    for simulation_id in (1, 2):
        channel.send(CancelClient(simulation_id, 1).to_dict())
    wait_for_ends(channel, 2)
    channel.send(Finished(0, REPORT).to_dict())


def count_pings_while_a_client_is_submitted(slurm):
    """Have sbatch of the Slurm of `slurm` answer only when the launcher has given signs of life meanwhile."""
    closed = Path(slurm) / "closed.sbatch"
    channel = open_channel()
    register(channel)
    closed.touch()
    submit(channel, 0)
    while len(list((Path(slurm) / "calls").glob("sbatch.*"))) < 2:
        time.sleep(0.05)
    pings = 0

    def is_enough(received):
        nonlocal pings
        pings += isinstance(received, Ping)
        return pings == 3

    live_on(channel, until=is_enough)
    closed.unlink()
    wait_for_ends(channel, 1)
    channel.send(Finished(0, REPORT).to_dict())


def crash_at_import():
    raise ImportError("no module named torrrch")


def crash_while_training():
    channel = open_channel()
    register(channel)
    submit(channel, 0)
    channel.recv()
    raise ValueError("user's mistake [in brackets]")


def tell_of_a_failure():
    channel = open_channel()
    register(channel)
    submit(channel, 0)
    traceback = 'Traceback (most recent call last):\n  File "study.py", line 3\nValueError: 3'
    channel.send(Failure("ValueError", "in training_step: 3", traceback).to_dict())
    sys.exit(1)


def tell_of_a_failure_and_hang():
    channel = open_channel()
    channel.send(Failure("FatalError", "hopeless solver").to_dict())
    time.sleep(1000)


def end_with_status_zero_but_unfinished():
    register(open_channel())


def finish_with_status_seven():
    channel = open_channel()
    register(channel)
    channel.send(Finished(7, REPORT).to_dict())
    sys.exit(7)


def be_killed():
    channel = open_channel()
    register(channel)
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def never_connect():
    print("importing for ever", file=sys.stderr, flush=True)
    time.sleep(1000)


def never_register():
    live_on(open_channel())


def fall_silent():
    channel = open_channel()
    register(channel)
    submit(channel, 0)
    time.sleep(1000)


def leave_the_channel_and_stay():
    channel = open_channel()
    register(channel)
    channel.close()
    time.sleep(1000)


def talk_nonsense():
    channel = open_channel()
    channel.send({"type": "Nonsense"})
    time.sleep(1000)


def ask_before_registering():
    channel = open_channel()
    submit(channel, 0)
    time.sleep(1000)


def live(nb_clients="2"):
    """Live until told to stop, then finish early and in order."""
    channel = open_channel()
    register(channel)
    for simulation_id in range(int(nb_clients)):
        submit(channel, simulation_id)
    report_progress(channel, 0, int(nb_clients))
    live_on(channel, until=lambda received: isinstance(received, Stop))
    channel.send(Finished(0, REPORT).to_dict())


def save_when_stopped(seconds, key="is_saving"):
    """Be about a checkpoint, as `key` says, for so many seconds when told to stop, then finish in order."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = open_channel()
    register(channel)
    submit(channel, 0)
    live_on(channel, until=lambda received: isinstance(received, Stop))
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        channel.send(Progress({key: True}).to_dict())
        time.sleep(0.05)
    (OUTPUT / "saved").touch()
    channel.send(Progress({key: False}).to_dict())
    time.sleep(0.2)
    channel.send(Finished(143, REPORT).to_dict())


def fail_in_a_step():
    """Train when told to stop, fail, and mind nothing more."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = open_channel()
    register(channel)
    channel.send(Progress({"saves_when_stopped": True}).to_dict())
    submit(channel, 0)
    live_on(channel, until=lambda received: isinstance(received, Stop))
    channel.send(Failure("ValueError", "the step fails", "").to_dict())
    live_on(channel)


def live_and_mind_nothing():
    """Live on whatever comes."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = open_channel()
    register(channel)
    submit(channel, 0)
    try:
        live_on(channel)
    except ChannelClosed:
        time.sleep(1000)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
