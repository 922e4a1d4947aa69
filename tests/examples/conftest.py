"""The example's folder, which stands first on `sys.path` when its server or its solver runs."""

import sys
from pathlib import Path

import pytest

HEAT = Path(__file__).parents[2] / "examples" / "heat-pde"
sys.path.insert(0, str(HEAT))


@pytest.fixture
def heat_folder() -> Path:
    return HEAT
