"""What holds for all tests."""

import os
import sys
from types import ModuleType

# TensorBoard's reader takes its file functions from TensorFlow where that is installed: seconds to import,
# and beside torch some builds of the two abort the process.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))

# Open MPI asks root to say twice that it means it; CI is root.
if os.getuid() == 0:
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
