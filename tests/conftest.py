"""What holds for all tests."""

import os
import signal
import sys
from types import ModuleType

# TensorBoard's reader takes its file functions from TensorFlow where that is installed: seconds to import,
# and beside torch some builds of the two abort the process.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))

# Open MPI asks root to say twice that it means it; CI is root.
if os.getuid() == 0:
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")

# Tests share the cores, and so do the ranks of one: threads of torch, which wait for each other by
# spinning, would slow all of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background jobs ignore Ctrl-C, those of nohup a terminal that hangs up, and so would the programs
# that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
