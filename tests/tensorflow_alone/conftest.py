"""These tests import TensorFlow, which some builds cannot do beside torch: they have their own process.

`tests/server/test_tensorflow.py` starts it.
"""

import os

collect_ignore_glob = [] if os.environ.get("MELISSA_TENSORFLOW_ALONE") else ["test_*.py"]
