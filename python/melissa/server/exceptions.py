"""The exceptions of Melissa under the path that studies import them from."""

from melissa.exceptions import (
    ConfigurationFileError,
    FatalError,
    FaultToleranceError,
    MelissaError,
    ReceptionError,
    TrainingError,
    UnsupportedConfiguration,
)

__all__ = [
    "ConfigurationFileError",
    "FatalError",
    "FaultToleranceError",
    "MelissaError",
    "ReceptionError",
    "TrainingError",
    "UnsupportedConfiguration",
]
