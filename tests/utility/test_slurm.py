"""What a task of Slurm reads in its environment."""

import os
import subprocess
import sys

import pytest

from melissa.exceptions import UnsupportedConfiguration
from melissa.utility.slurm import SlurmTask, expand_hostlist

TASK = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_JOB_NODELIST": "gpu[07-10]",
    "SLURM_JOB_ID": "123456",
}


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("login", ["login"]),
        ("node[01-03,07]", ["node01", "node02", "node03", "node07"]),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("login,node[1,3],x", ["login", "node1", "node3", "x"]),
        ("r[1-2]n[1-2]-ib0", ["r1n1-ib0", "r1n2-ib0", "r2n1-ib0", "r2n2-ib0"]),
    ],
)
def test_a_list_of_hosts_is_expanded(text, hosts):
    assert expand_hostlist(text) == hosts


@pytest.mark.parametrize("text", ["n[1-2", "n1]", "n[a]", "n[1-]", "n[[1]]", "n[]"])
def test_a_broken_list_of_hosts_is_refused(text):
    with pytest.raises(ValueError, match="list of hosts"):
        expand_hostlist(text)


def test_a_task_knows_its_ranks_and_where_rank_0_is():
    task = SlurmTask.read(TASK)
    assert (task.rank, task.local_rank, task.size, task.cpus_per_task) == (5, 1, 8, 1)
    assert task.hostnames == ("gpu07", "gpu08", "gpu09", "gpu10")
    assert task.master_addr == "gpu07"
    assert 1024 < task.master_port < 32768


def test_a_step_on_a_part_of_the_nodes_meets_on_the_first_of_them():
    assert SlurmTask.read(TASK | {"SLURM_STEP_NODELIST": "gpu[09-10]"}).master_addr == "gpu09"


def test_jobs_and_steps_beside_each_other_have_ports_of_their_own():
    others = [{"SLURM_JOB_ID": "123457"}, {"SLURM_STEP_ID": "1"}, {"SLURM_STEP_ID": "2"}]
    ports = [SlurmTask.read(TASK | other).master_port for other in [{}, *others]]
    assert len(set(ports)) == 4


def test_a_master_that_the_job_has_set_counts():
    task = SlurmTask.read(TASK | {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4711"})
    assert (task.master_addr, task.master_port) == ("10.0.0.7", 4711)


def test_what_is_missing_outside_slurm_is_named():
    with pytest.raises(UnsupportedConfiguration, match=r"no SLURM_PROCID, .* no SLURM_JOB_NODELIST .* srun"):
        SlurmTask.read({})


@pytest.mark.parametrize(("name", "value"), [("SLURM_PROCID", "-1"), ("SLURM_JOB_NODELIST", "n[")])
def test_a_broken_environment_is_refused(name, value):
    with pytest.raises(UnsupportedConfiguration):
        SlurmTask.read(TASK | {name: value})


def outside_of_slurm():
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}


def test_importing_idr_torch_gives_ranks_and_sets_the_master():
    code = (
        "import os\nfrom melissa.utility import idr_torch as idr\n"
        "print(idr.rank, idr.local_rank, idr.size, idr.cpus_per_task, idr.hostnames)\n"
        "print(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']) > 0)"
    )
    environment = outside_of_slurm() | TASK | {"SLURM_CPUS_PER_TASK": "10"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout == "5 1 8 10 ['gpu07', 'gpu08', 'gpu09', 'gpu10']\ngpu07 True\n"


def test_importing_idr_torch_outside_slurm_raises():
    result = subprocess.run(
        [sys.executable, "-c", "import melissa.utility.idr_torch"],
        env=outside_of_slurm(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "UnsupportedConfiguration: this process is no task of Slurm" in result.stderr
