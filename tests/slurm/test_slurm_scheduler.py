"""The slurm scheduler on a real cluster of one node: states of jobs, their ranks, their ends."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from melissa.scheduler.arguments import JobOptions
from melissa.scheduler.factory import default_job_limit, make_scheduler, nb_server_ranks
from melissa.scheduler.job import JobKind, JobRequest, State
from melissa.scheduler.slurm import YOUTH, SlurmScheduler


class Jobs:
    """Submits shell commands, and polls."""

    def __init__(self, folder, arguments=(), wrapper=()):
        (folder / ".melissa").mkdir(exist_ok=True)
        options = JobOptions(tuple(arguments), tuple(wrapper))
        self.scheduler = SlurmScheduler(dict.fromkeys(JobKind, options))
        self.scheduler.start()
        self.folder = folder
        self.all = []

    def submit(self, command, **request):
        request = {"directory": self.folder} | request
        self.all.append(self.scheduler.submit(JobRequest("job", ["/bin/sh", "-c", command], **request)))
        return self.all[-1]

    def wait(self, condition, timeout=60.0):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, [(job.state, job.error) for job in self.all]
            time.sleep(0.05)
            self.scheduler.ask()
            self.scheduler.poll(self.all)

    def wait_for_numbers(self):
        self.wait(lambda: all(job.number is not None for job in self.all))

    def wait_for_end(self, job):
        self.wait(lambda: not job.is_alive)
        return job


@pytest.fixture
def start(tmp_path):
    started = []

    def start(*arguments, wrapper=()):
        started.append(Jobs(tmp_path, arguments, wrapper))
        return started[-1]

    yield start
    for jobs in started:
        jobs.scheduler.close(0.0)


def test_jobs_end_in_the_state_that_their_status_says(start, tmp_path):
    jobs = start()
    files = {"stdout": tmp_path / "out", "stderr": tmp_path / "err%j"}
    (tmp_path / "err%j").write_text("of an earlier attempt\n")
    good = jobs.submit('echo "$MELISSA_OURS"; pwd', environment={"MELISSA_OURS": "a 'b' $c"}, **files)
    bad = jobs.submit("seq 1 10000 >&2; exit 3", **files)
    killed = jobs.submit("kill -9 $$")
    assert good.state is State.WAITING
    for job in jobs.all:
        jobs.wait_for_end(job)
    assert (good.state, good.exit_code) == (State.TERMINATED, 0)
    assert (tmp_path / "out").read_text() == f"a 'b' $c\n{tmp_path}\n"
    assert (bad.state, bad.exit_code) == (State.FAILED, 3)
    assert "9999\n10000\n" in bad.error
    assert "earlier" not in bad.error
    assert (killed.state, killed.exit_code) == (State.FAILED, 128 + 9)
    assert list((tmp_path / ".melissa").iterdir()) == []


def test_srun_starts_the_ranks_of_a_job_with_one_mpi_between_them(start, tmp_path):
    code = "from mpi4py import MPI; c = MPI.COMM_WORLD; print(c.allgather(c.Get_rank()))"
    jobs = start("--ntasks=2", "#SBATCH --time 10")
    job = jobs.submit(f"{sys.executable} -c '{code}'", stdout=tmp_path / "out")
    jobs.wait_for_end(job)
    assert job.state is State.TERMINATED, job.error
    assert (tmp_path / "out").read_text() == "[0, 1]\n[0, 1]\n"


def test_a_wrapper_stands_before_the_command_and_another_launcher_in_the_place_of_srun(start, tmp_path):
    for wrapper in (["env", "WRAPPED=yes"], ["srun", "--export=ALL,WRAPPED=yes"]):
        jobs = start("-n", "1", wrapper=wrapper)
        jobs.wait_for_end(jobs.submit("echo $WRAPPED", stdout=tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "yes\nyes\n"


def test_a_job_that_waits_for_room_is_waiting_and_can_be_cancelled(start, slurm_cluster):
    jobs = start("-n", "8")
    first, second = jobs.submit("sleep 1000"), jobs.submit("sleep 1000")
    jobs.wait_for_numbers()
    jobs.wait(lambda: first.state is State.RUNNING)
    assert second.state is State.WAITING
    jobs.scheduler.cancel([second], 1.0)
    jobs.wait_for_end(second)
    assert (second.state, second.exit_code) == (State.FAILED, None)
    assert first.is_alive
    assert first.number in slurm_cluster.run("squeue", "-h", "-o", "%i")


def test_a_cancelled_job_that_ignores_sigterm_is_killed(start, slurm_cluster, tmp_path):
    jobs = start()
    job = jobs.submit("trap '' TERM; touch deaf; while true; do sleep 0.1; done")
    jobs.wait(lambda: job.state is State.RUNNING and (tmp_path / "deaf").exists())
    jobs.scheduler.cancel([job], 0.2)
    jobs.wait_for_end(job)
    assert job.state is State.FAILED
    assert slurm_cluster.run("squeue", "-h") == ""


ENDS_IN_ORDER = 'trap "sleep 1; touch saved; exit 5" TERM; touch here; while true; do sleep 0.1; done'


def test_a_cancelled_job_has_its_grace_after_sigterm(start, tmp_path):
    jobs = start()
    job = jobs.submit(ENDS_IN_ORDER)
    jobs.wait(lambda: job.state is State.RUNNING and (tmp_path / "here").exists())
    grown_up = time.monotonic() + YOUTH
    jobs.wait(lambda: time.monotonic() > grown_up)
    jobs.scheduler.cancel([job], 20.0)
    jobs.wait_for_end(job)
    assert (tmp_path / "saved").exists()
    assert (job.state, job.exit_code) == (State.FAILED, 5)


def test_a_rank_that_fails_ends_the_others(start):
    jobs = start("-n", "2")
    job = jobs.wait_for_end(jobs.submit('[ "$SLURM_PROCID" = 0 ] && exit 3; sleep 1000'))
    assert job.state is State.FAILED


def test_close_ends_everything(start, slurm_cluster):
    jobs = start()
    for _ in range(3):
        jobs.submit("sleep 1000")
    jobs.wait_for_numbers()
    jobs.scheduler.close(0.5)
    assert slurm_cluster.run("squeue", "-h") == ""


def test_a_job_that_slurm_refuses_says_why(start):
    jobs = start("--partition=no-such")
    job = jobs.wait_for_end(jobs.submit("exit 0"))
    assert job.state is State.ERROR
    assert "cannot submit it: sbatch" in job.error
    assert "no-such" in job.error or "partition" in job.error


NO_ANSWER = """\
#!/bin/sh
echo "$@" >> {folder}/calls
[ "$(wc -l < {folder}/calls)" = 1 ] || exec {sbatch} "$@"
{first}
kill -9 $$
"""


@pytest.mark.parametrize(("first", "calls"), [('{sbatch} "$@" >&2', 1), ("", 2)])
def test_a_job_whose_sbatch_gave_no_answer_runs_once(start, tmp_path, monkeypatch, first, calls):
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    sbatch = shutil.which("sbatch")
    program.write_text(NO_ANSWER.format(folder=tmp_path, sbatch=sbatch, first=first.format(sbatch=sbatch)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    jobs = start("-J mine")
    job = jobs.wait_for_end(jobs.submit("echo run >> runs"))
    assert (job.state, job.exit_code) == (State.TERMINATED, 0)
    assert (tmp_path / "runs").read_text() == "run\n"
    assert (tmp_path / "calls").read_text().count("\n") == calls


SUBMIT_AND_WAIT = """
import sys, time
from pathlib import Path
from melissa.scheduler.job import JobRequest
from melissa.scheduler.scheduler import SchedulerError
from melissa.scheduler.slurm import SlurmScheduler
scheduler = SlurmScheduler()
scheduler.start()
for command in ("sleep 1000", "sleep 1001"):
    job = scheduler.submit(JobRequest("job", ["/bin/sh", "-c", command], Path(sys.argv[1])))
while job.number is None:
    time.sleep(0.05)
    scheduler.poll([job])
print(job.state, flush=True)
time.sleep(1000)
"""


def test_jobs_are_cancelled_when_the_launcher_is_killed(tmp_path, slurm_cluster, wait):
    (tmp_path / ".melissa").mkdir()
    command = [sys.executable, "-c", SUBMIT_AND_WAIT, str(tmp_path)]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE)
    launcher.stdout.readline()
    wait(lambda: slurm_cluster.run("squeue", "-h", "-t", "R").count("\n") == 2, "two running jobs")
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.communicate()
    wait(lambda: slurm_cluster.run("squeue", "-h") == "", "an empty queue")


@pytest.mark.parametrize(
    ("arguments", "nb_ranks"),
    [
        ([], 1),
        (["--ntasks=3"], 3),
        (["--ntasks 3"], 3),
        (["-n", "3"], 3),
        (["-n3"], 3),
        (["-N", "2"], 2),
        (["--nodes=2", "--ntasks-per-node=4"], 8),
        (["--nodes=2", "--ntasks-per-node=4", "--ntasks=6"], 6),
        (["--nodes=2-4"], None),
    ],
)
def test_the_number_of_server_ranks_is_in_the_arguments(arguments, nb_ranks):
    assert nb_server_ranks({"scheduler": "slurm", "scheduler_arg_server": arguments}) == nb_ranks


def test_the_options_of_an_srun_wrapper_count_too():
    wrapper = {"scheduler_server_command": "srun", "scheduler_server_command_options": ["-n", "5"]}
    assert nb_server_ranks({"scheduler": "slurm", "scheduler_arg": ["-n", "2"]} | wrapper) == 5


IN_ALLOCATION = """
import os, sys, time
from pathlib import Path
from melissa.scheduler.factory import make_scheduler
from melissa.scheduler.job import JobRequest, State
scheduler = make_scheduler({"scheduler": "slurm", "scheduler_arg_client": ["-n", "2"]})
print(type(scheduler).__name__, flush=True)
scheduler.start()
folder = Path(sys.argv[1])
jobs = [
    scheduler.submit(JobRequest(str(i), ["/bin/sh", "-c", command], folder, stdout=folder / f"out{i}"))
    for i, command in enumerate([
        'while [ ! -e other ]; do sleep 0.05; done; echo $SLURM_PROCID; exit 4',
        'touch other; echo "$SLURM_PROCID"',
        'echo $$ >> pids; trap "" TERM; while true; do sleep 0.1; done',
    ])
]
while jobs[0].is_alive or jobs[1].is_alive or not (folder / "pids").exists():
    time.sleep(0.05)
    scheduler.poll(jobs)
print([job.exit_code for job in jobs], flush=True)
if sys.argv[2] == "close":
    scheduler.close(0.2)
else:
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("end", ["close", "die"])
def test_in_an_allocation_jobs_are_steps_side_by_side_that_end_with_it(tmp_path, slurm_cluster, wait, end):
    command = ["salloc", "-Q", "-n", "6", sys.executable, "-c", IN_ALLOCATION, str(tmp_path), end]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    stdout, _ = launcher.communicate(timeout=60)
    assert stdout == "SlurmStepScheduler\n[4, 0, None]\n"
    assert sorted((tmp_path / "out1").read_text().split()) == ["0", "1"]
    pids = (tmp_path / "pids").read_text().split()
    wait(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "the end of the tasks")
    wait(lambda: slurm_cluster.run("squeue", "-h") == "", "an empty queue")


IN_ORDER_IN_ALLOCATION = """
import sys, time
from pathlib import Path
from melissa.scheduler.factory import make_scheduler
from melissa.scheduler.job import JobRequest
scheduler = make_scheduler({"scheduler": "slurm"})
scheduler.start()
folder = Path(sys.argv[1])
job = scheduler.submit(JobRequest("7.1", ["/bin/sh", "-c", sys.argv[3]], folder))
while not (folder / "here").exists():
    time.sleep(0.05)
    scheduler.poll([job])
if sys.argv[2] == "cancel":
    scheduler.cancel([job], 20.0)
    while job.is_alive:
        time.sleep(0.05)
        scheduler.poll([job])
    print(job.exit_code, flush=True)
scheduler.close(20.0)
"""


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_in_an_allocation_steps_have_their_grace_after_sigterm(tmp_path, end):
    script = [sys.executable, "-c", IN_ORDER_IN_ALLOCATION, str(tmp_path), end, ENDS_IN_ORDER]
    begin = time.monotonic()
    done = subprocess.run(
        ["salloc", "-Q", "-n", "2", *script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (tmp_path / "saved").exists(), done.stderr
    assert done.stdout == ("5\n" if end == "cancel" else "")
    assert time.monotonic() - begin < 18


def test_in_an_allocation_as_many_jobs_run_at_once_as_there_is_room_for(monkeypatch):
    config = {"scheduler": "slurm", "scheduler_arg_server": ["-n", "2"], "scheduler_arg_client": ["-n", "3"]}
    assert default_job_limit(config) == 1000
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "9")
    assert default_job_limit(config) == 3
    assert make_scheduler(config).launcher_host() == os.uname().nodename
