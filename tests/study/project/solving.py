"""What the solvers of the tests are made of. Importing it makes a process the solver of one simulation."""

import os
import sys
import time
from pathlib import Path

import numpy as np
from fields import field_values

from melissa_api import melissa_finalize, melissa_init_typed, melissa_send_typed

SIMULATION = int(os.environ["MELISSA_SIMU_ID"])
ATTEMPT = int(os.environ["MELISSA_ATTEMPT"])
PARAMETERS = [float(word) for word in sys.argv[1:][-2:]]
OUTPUT = Path(os.environ["MELISSA_OUTPUT_DIR"])
FIELDS = {"temperature": (12, "float64")}


def declare(fields=FIELDS):
    """Declare the fields: name -> (size, dtype)."""
    for name, (size, dtype) in fields.items():
        melissa_init_typed(name, size, dtype)


def send(*time_steps, fields=FIELDS):
    """Send these time steps of every field."""
    for time_step in time_steps:
        for name, (size, dtype) in fields.items():
            values = field_values(name, size, time_step, PARAMETERS)
            melissa_send_typed(name, np.asarray(values, dtype))


def solve(nb_time_steps, fields=FIELDS):
    """Be a simulation without any trouble."""
    declare(fields)
    send(*range(nb_time_steps), fields=fields)
    melissa_finalize()


def mark(name):
    """Tell the test, and other solvers, that this one has come so far."""
    (OUTPUT / name).touch()


def wait_for(name, seconds=60.0):
    """Wait until the test, or another solver, has set the mark `name`."""
    deadline = time.monotonic() + seconds
    while not (OUTPUT / name).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody has set the mark {name}")
        time.sleep(0.01)
