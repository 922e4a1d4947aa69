"""A solver that sends steps of a field at a steady pace: ``solver.py SIZE STEPS PER_SECOND <parameters>``.

Without a pace (0 per second) it sends as fast as the server takes them. Between two steps it rests: the
cores belong to the server, whose waits are measured.
"""

import sys
import time

import numpy as np

from melissa_api import melissa_finalize, melissa_init_typed, melissa_send_typed

size, nb_time_steps = int(sys.argv[1]), int(sys.argv[2])
period = 1.0 / float(sys.argv[3]) if float(sys.argv[3]) else 0.0
field = np.full(size, float(sys.argv[4]), np.float32)

melissa_init_typed("u", size, "float32")
due = time.perf_counter()
for step in range(nb_time_steps):
    field[step % size] += 1.0
    melissa_send_typed("u", field)
    due += period
    time.sleep(max(0.0, due - time.perf_counter()))
melissa_finalize()
