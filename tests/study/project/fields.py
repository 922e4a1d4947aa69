"""The fields that the solvers of the tests send: every value can be computed again from the sample's keys."""

import numpy as np


def field_values(name, size, time_step, parameters):
    """Return the field `name`, float64: another one for each name, time step and set of parameters."""
    slope = parameters[0] if len(parameters) else 1.0
    return slope * np.arange(1, size + 1) + 100.0 * time_step + sum(name.encode())
