"""Starts the tests that TensorFlow has a process of its own for."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1] / "tensorflow_alone"


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed")
def test_the_tests_of_what_needs_tensorflow_pass():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS)]
    environment = os.environ | {"MELISSA_TENSORFLOW_ALONE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


def test_importing_the_server_needs_no_tensorflow():
    code = (
        "import sys; sys.modules['tensorflow'] = None; sys.modules['keras'] = None\n"
        "from melissa import TFServer\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
