"""What holds for all tests."""

import sys
from types import ModuleType

# TensorBoard's reader takes its file functions from TensorFlow where that is installed: seconds to import,
# and beside torch some builds of the two abort the process.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
