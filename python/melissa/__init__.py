"""Melissa: train a deep surrogate on an ensemble of simulations while they run, writing nothing to disk.

The names here are loaded when they are used, so that ``import melissa`` needs NumPy alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from melissa.exceptions import (
        AuthenticationError,
        BufferClosed,
        ClientError,
        ConfigurationFileError,
        EndOfData,
        FatalError,
        FaultToleranceError,
        ForkedProcessError,
        MelissaError,
        MemoryLimitError,
        ProtocolError,
        ReceptionError,
        RefusedError,
        SchemaError,
        ServerLostError,
        StudyStopped,
        TrainingBufferError,
        TrainingError,
        UnsupportedConfiguration,
        WaitTimeout,
    )
    from melissa.server.base_server import BaseServer
    from melissa.server.deep_learning.base_dl_server import DeepMelissaServer, rank_zero_only
    from melissa.server.deep_learning.frameworks import FrameworkType
    from melissa.server.deep_learning.reservoir import FIFO, FIRO, BatchReservoir, Reservoir
    from melissa.server.deep_learning.tf_server import TFServer
    from melissa.server.deep_learning.torch_server import TorchServer
    from melissa.server.parameters import HaltonGenerator, LHSGenerator, ParameterSamplerType, RandomUniform
    from melissa.server.simulation import SimulationData

    __version__: str

__all__ = [
    "FIFO",
    "FIRO",
    "AuthenticationError",
    "BaseServer",
    "BatchReservoir",
    "BufferClosed",
    "ClientError",
    "ConfigurationFileError",
    "DeepMelissaServer",
    "EndOfData",
    "FatalError",
    "FaultToleranceError",
    "ForkedProcessError",
    "FrameworkType",
    "HaltonGenerator",
    "LHSGenerator",
    "MelissaError",
    "MemoryLimitError",
    "ParameterSamplerType",
    "ProtocolError",
    "RandomUniform",
    "ReceptionError",
    "RefusedError",
    "Reservoir",
    "SchemaError",
    "ServerLostError",
    "SimulationData",
    "StudyStopped",
    "TFServer",
    "TorchServer",
    "TrainingBufferError",
    "TrainingError",
    "UnsupportedConfiguration",
    "WaitTimeout",
    "__version__",
    "rank_zero_only",
]

# Where the names of `__all__` are that are not exceptions.
_MODULE_OF = {
    "BaseServer": "melissa.server.base_server",
    "BatchReservoir": "melissa.server.deep_learning.reservoir",
    "DeepMelissaServer": "melissa.server.deep_learning.base_dl_server",
    "FIFO": "melissa.server.deep_learning.reservoir",
    "FIRO": "melissa.server.deep_learning.reservoir",
    "FrameworkType": "melissa.server.deep_learning.frameworks",
    "HaltonGenerator": "melissa.server.parameters",
    "LHSGenerator": "melissa.server.parameters",
    "ParameterSamplerType": "melissa.server.parameters",
    "RandomUniform": "melissa.server.parameters",
    "Reservoir": "melissa.server.deep_learning.reservoir",
    "SimulationData": "melissa.server.simulation",
    "TFServer": "melissa.server.deep_learning.tf_server",
    "TorchServer": "melissa.server.deep_learning.torch_server",
    "rank_zero_only": "melissa.server.deep_learning.base_dl_server",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: Any
    if name == "__version__":
        value = _version()
    else:
        value = getattr(import_module(_MODULE_OF.get(name, "melissa.exceptions")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """Return the version of the installed distribution; in a checkout, that of the extension."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("melissa-dl")
    except PackageNotFoundError:
        return str(import_module("melissa._melissa").__version__)
