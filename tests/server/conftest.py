"""What several test files of the server use."""

import logging

import numpy as np
import pytest

from melissa.server.simulation import SimulationData


@pytest.fixture
def log(caplog, monkeypatch):
    """The records of the melissa logger, all levels."""
    logger = logging.getLogger("melissa")
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.DEBUG, logger="melissa")
    return caplog


@pytest.fixture
def make_sample():
    """Samples whose field says which they are: every value is 1000 * simulation + step."""

    def make(simulation_id, time_step=0, size=4, parameters=(0.25, 0.5)):
        values = np.full(size, 1000.0 * simulation_id + time_step, np.float32)
        return SimulationData(simulation_id, time_step, {"u": values}, list(parameters))

    return make
