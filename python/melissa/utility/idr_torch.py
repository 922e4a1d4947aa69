"""Ranks of data-parallel training from Slurm's environment, under the names that IDRIS gave them.

Importing it sets ``MASTER_ADDR`` and ``MASTER_PORT``, and raises `UnsupportedConfiguration` outside a task of
Slurm. ``import melissa.utility.idr_torch as idr_torch`` takes the place of Jean-Zay's module of that name:
http://www.idris.fr/eng/jean-zay/gpu/jean-zay-gpu-torch-multi-eng.html

Attributes
----------
rank : int
    Number of this task among all, from 0.
local_rank : int
    Number of this task among those of its node, from 0.
size : int
    Number of tasks.
cpus_per_task : int
    Cores that each task was given; 1 where the job does not say.
hostnames : list of str
    Nodes of the job step.
"""

from __future__ import annotations

from melissa.utility.slurm import SlurmTask

__all__ = ["cpus_per_task", "hostnames", "local_rank", "rank", "size"]

_task = SlurmTask.read()
_task.publish_master()

rank: int = _task.rank
local_rank: int = _task.local_rank
size: int = _task.size
cpus_per_task: int = _task.cpus_per_task
hostnames: list[str] = list(_task.hostnames)
