"""The openmpi scheduler: ranks by every ``mpiexec`` that is here, and that none of them outlives its job."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from melissa.scheduler import openmpi
from melissa.scheduler.arguments import JobOptions, job_options
from melissa.scheduler.factory import default_job_limit, make_scheduler, nb_server_ranks
from melissa.scheduler.job import JobKind, State
from melissa.scheduler.openmpi import OpenMpiScheduler

# That of the environment, and that of the system where there is another.
MPIEXECS = [path for path in ("mpiexec", "/usr/bin/mpiexec") if shutil.which(path)]
TWO_RANKS = {"scheduler_arg_client": ["--oversubscribe", "-n", "2"]}


def options(**launcher_config):
    return job_options({"scheduler": "openmpi"} | launcher_config)


@pytest.fixture
def start(make_jobs, monkeypatch):
    """Start a scheduler with a `launcher_config`; return what submits jobs to it."""
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    return lambda **launcher_config: make_jobs(OpenMpiScheduler(options(**launcher_config)))


@pytest.fixture(params=MPIEXECS)
def two_ranks(start, request):
    """Jobs of two ranks, by each ``mpiexec``."""
    return start(**TWO_RANKS, scheduler_client_command=request.param)


def test_there_is_an_mpiexec():
    assert MPIEXECS


def test_a_job_runs_on_as_many_ranks_as_its_arguments_say(two_ranks, tmp_path):
    environment = two_ranks._processes.environment | {"MELISSA_OURS": "söme thing"}
    command = 'echo "$MELISSA_OURS $OMPI_COMM_WORLD_RANK"; echo oh >&2; pwd'
    job = two_ranks.submit(command, environment=environment, stdout=tmp_path / "out", stderr=tmp_path / "err")
    two_ranks.wait_for_end(job)
    assert (job.state, job.exit_code) == (State.TERMINATED, 0)
    expected = ["söme thing 0", "söme thing 1", str(tmp_path), str(tmp_path)]
    assert sorted((tmp_path / "out").read_text().splitlines()) == sorted(expected)
    assert (tmp_path / "err").read_text() == "oh\noh\n"


def test_a_job_without_a_number_of_ranks_has_one(start, tmp_path):
    jobs = start()
    jobs.wait_for_end(jobs.submit("echo here", stdout=tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "here\n"


@pytest.mark.parametrize("mpiexec", MPIEXECS)
def test_jobs_share_the_cores_unless_their_arguments_bind_them(start, tmp_path, mpiexec):
    command = ["grep", "Cpus_allowed_list", "/proc/self/status"]
    told = {}
    for arguments in ([], ["--bind-to", "core"]):
        jobs = start(scheduler_arg_client=arguments, scheduler_client_command=mpiexec)
        output = tmp_path / f"out{len(arguments)}"
        jobs.wait_for_end(jobs.submit(command, stdout=output))
        told[len(arguments)] = output.read_text()
    ours = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told[0] == ours
    assert told[2] != ours or len(os.sched_getaffinity(0)) == 1


def test_server_and_clients_have_arguments_and_wrappers_of_their_own(start, tmp_path):
    jobs = start(
        scheduler_arg=["--oversubscribe"],
        scheduler_arg_server=["-n", "3"],
        scheduler_client_command="env",
        scheduler_client_command_options=["WRAPPED=yes"],
    )
    for kind in JobKind:
        output = tmp_path / kind.value
        jobs.wait_for_end(jobs.submit("echo ${WRAPPED:-no}", kind=kind, stdout=output))
    assert (tmp_path / "server").read_text() == "no\nno\nno\n"
    assert (tmp_path / "client").read_text() == "yes\n"


def test_a_rank_that_fails_ends_its_job_and_says_why(two_ranks, processes):
    job = two_ranks.submit('[ "$OMPI_COMM_WORLD_RANK" = 0 ] && sleep 1000; echo the reason >&2; exit 3')
    two_ranks.wait_for_end(job)
    assert (job.state, job.exit_code) == (State.FAILED, 3)
    assert "the reason" in job.error
    processes.wait_for(0)


def test_a_missing_mpiexec_is_told(start):
    jobs = start(scheduler_client_command="/no/where/mpiexec")
    job = jobs.wait_for_end(jobs.submit("exit 0"))
    assert job.state is State.ERROR
    assert "cannot start /no/where/mpiexec: No such file" in job.error


DEEP = "trap '' TERM; setsid sleep 1000 & sleep 1000"
NB_PROCESSES = 1 + 2 * 3


def test_a_cancelled_job_ends_with_all_its_ranks(two_ranks, processes):
    job = two_ranks.submit(DEEP)
    processes.wait_for(NB_PROCESSES)
    two_ranks.scheduler.cancel([job], 0.2)
    two_ranks.wait_for_end(job)
    processes.wait_for(0)


def test_ranks_do_not_outlive_a_killed_mpiexec(two_ranks, processes):
    job = two_ranks.submit(DEEP)
    processes.wait_for(NB_PROCESSES)
    two_ranks.wait(lambda: job.state is State.RUNNING)
    os.kill(job.pid, signal.SIGKILL)
    two_ranks.wait_for_end(job)
    assert job.exit_code == -signal.SIGKILL
    processes.wait_for(0)


def test_ranks_do_not_outlive_a_killed_supervisor(two_ranks, processes):
    job = two_ranks.submit(DEEP)
    processes.wait_for(NB_PROCESSES)
    two_ranks.wait(lambda: job.state is State.RUNNING)
    os.kill(two_ranks.supervisor, signal.SIGKILL)
    with pytest.raises(Exception, match="supervisor of local jobs"):
        two_ranks.wait(lambda: False)
    assert processes.alive() == []


SUBMIT_AND_WAIT = """
import sys, time
from pathlib import Path
from melissa.scheduler.arguments import JobOptions
from melissa.scheduler.job import JobKind, JobRequest
from melissa.scheduler.openmpi import OpenMpiScheduler
options = JobOptions(("--oversubscribe", "-n", "2"), (sys.argv[1],))
scheduler = OpenMpiScheduler({JobKind.CLIENT: options})
scheduler.start()
scheduler.submit(JobRequest("job", ["/bin/sh", "-c", sys.argv[2]], Path("/")))
time.sleep(1000)
"""


@pytest.mark.parametrize("mpiexec", MPIEXECS)
def test_ranks_do_not_outlive_a_killed_launcher(processes, mpiexec):
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    launcher = subprocess.Popen(
        [sys.executable, "-c", SUBMIT_AND_WAIT, mpiexec, DEEP],
        env=os.environ | allowed | processes.environment,
    )
    processes.wait_for(NB_PROCESSES + 2)  # the launcher and its supervisor have the mark, too
    launcher.kill()
    launcher.wait()
    processes.wait_for(0)


@pytest.mark.parametrize(
    ("arguments", "nb_ranks"),
    [
        ([], 1),
        (["--oversubscribe"], 1),
        (["-n", "3"], 3),
        (["-np", "3"], 3),
        (["--np", "3"], 3),
        (["-n=3"], 3),
        (["-n3"], 3),
        (["-n", "1", "-x", "N", "-n", "4"], 4),
        (["-N", "2"], None),
        (["--map-by", "ppr:2:node"], None),
        (["--map-by", "ppr:2:node", "-n", "4"], 4),
    ],
)
def test_the_number_of_server_ranks_is_in_the_arguments(arguments, nb_ranks):
    assert nb_server_ranks({"scheduler": "openmpi", "scheduler_arg_server": arguments}) == nb_ranks


def test_jobs_reach_the_launcher_by_loopback_unless_machines_are_named():
    assert make_scheduler({"scheduler": "openmpi"}).launcher_host() == "127.0.0.1"
    named = make_scheduler({"scheduler": "openmpi", "scheduler_arg_client": ["--host", "a,b"]})
    assert named.launcher_host() == os.uname().nodename


@pytest.mark.parametrize(("name", "value"), [("SLURM_JOB_NUM_NODES", "2"), ("OAR_NODEFILE", "/nodes")])
def test_machines_may_be_given_by_a_batch_system(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert make_scheduler({"scheduler": "openmpi"}).launcher_host() == os.uname().nodename


def test_jobs_fill_the_cores_of_this_machine_unless_machines_are_named():
    cores = len(os.sched_getaffinity(0))
    assert default_job_limit({"scheduler": "openmpi"}) == cores + 1
    two = {"scheduler": "openmpi", "scheduler_arg_client": ["-n", "2"]}
    assert default_job_limit(two) == max(1, cores // 2) + 1
    assert default_job_limit(two | {"scheduler_arg": ["--hostfile", "hosts"]}) == 1000


def test_variables_are_handed_on_by_open_mpi_and_not_by_others(tmp_path):
    other = tmp_path / "mpiexec"
    other.write_text("#!/bin/sh\necho HYDRA build details\n")
    other.chmod(0o755)
    assert not openmpi._is_open_mpi(str(other))
    assert all(openmpi._is_open_mpi(path) for path in MPIEXECS)


def test_a_variable_that_the_arguments_set_is_left_to_them():
    words = openmpi._environment_options(
        {"MELISSA_A": "1", "OMP_NUM_THREADS": "1"}, ["-x", "OMP_NUM_THREADS=4"]
    )
    assert "MELISSA_A" in words
    assert "OMP_NUM_THREADS" not in words


def test_a_wrapper_that_starts_ranks_takes_the_place_of_mpiexec():
    assert JobOptions((), ("/opt/bin/mpirun", "-v")).launched_by(("mpirun",), "mpiexec") == (
        ("/opt/bin/mpirun", "-v"),
        (),
    )
    assert JobOptions((), ("valgrind",)).launched_by(("mpirun",), "mpiexec") == (("mpiexec",), ("valgrind",))
