"""The exceptions of Melissa, one tree.

Every error that the package raises on purpose is a `MelissaError`; where a built-in class says the same
thing, the error is that class, too, so that ordinary ``except`` clauses work. The Rust extension raises
these classes.

::

    MelissaError
    ├── FatalError
    │   ├── FaultToleranceError
    │   └── RankLostError
    ├── ConfigurationFileError (ValueError)
    │   └── UnsupportedConfiguration
    ├── CheckpointError
    ├── TrainingError
    ├── ReceptionError
    │   ├── SchemaError (ValueError)
    │   ├── ProtocolError
    │   └── AuthenticationError
    ├── TrainingBufferError
    │   ├── EndOfData
    │   ├── WaitTimeout (TimeoutError)
    │   └── BufferClosed
    ├── MemoryLimitError (MemoryError)
    ├── ForkedProcessError (RuntimeError)
    └── ClientError
        ├── RefusedError
        └── ServerLostError (ConnectionError)
    StudyStopped (SystemExit)
"""

__all__ = [
    "AuthenticationError",
    "BufferClosed",
    "CheckpointError",
    "ClientError",
    "ConfigurationFileError",
    "EndOfData",
    "FatalError",
    "FaultToleranceError",
    "ForkedProcessError",
    "MelissaError",
    "MemoryLimitError",
    "ProtocolError",
    "RankLostError",
    "ReceptionError",
    "RefusedError",
    "SchemaError",
    "ServerLostError",
    "StudyStopped",
    "TrainingBufferError",
    "TrainingError",
    "UnsupportedConfiguration",
    "WaitTimeout",
]


class MelissaError(Exception):
    """Base of every error that Melissa raises on purpose."""


class FatalError(MelissaError):
    """The study cannot go on."""


class FaultToleranceError(FatalError):
    """A fault that fault tolerance cannot, or was told not to, mend."""


class RankLostError(FatalError):
    """The process of a server rank has died; the launcher may start the server again."""


class ConfigurationFileError(MelissaError, ValueError):
    """The configuration is wrong; the text names the path, the value and what was expected."""


class UnsupportedConfiguration(ConfigurationFileError):
    """The configuration asks for a combination that cannot work."""


class CheckpointError(MelissaError):
    """A checkpoint cannot be written, or is damaged; the text names the file and what is wrong."""


class TrainingError(MelissaError):
    """The training loop failed."""


class ReceptionError(MelissaError):
    """Receiving data from the simulations failed."""


class SchemaError(ReceptionError, ValueError):
    """A field's name, size or dtype is not what the study has."""


class ProtocolError(ReceptionError):
    """A peer broke the wire protocol."""


class AuthenticationError(ReceptionError):
    """A peer could not prove the study key."""


class TrainingBufferError(MelissaError):
    """A training buffer was used in a way that it cannot serve."""


class EndOfData(TrainingBufferError):
    """Reception is over and every sample of the buffer was delivered."""


class WaitTimeout(TrainingBufferError, TimeoutError):
    """A wait on a buffer ran out of its time."""


class BufferClosed(TrainingBufferError):
    """A sample was put after the end of reception."""


class MemoryLimitError(MelissaError, MemoryError):
    """The slab does not fit in the memory available; the text has both figures."""


class ForkedProcessError(MelissaError, RuntimeError):
    """A buffer or receiver was used in a forked child; it belongs to the process that made it."""


class ClientError(MelissaError):
    """A solver's call could not be served."""


class RefusedError(ClientError):
    """The server refused this client; the text is the server's reason."""


class ServerLostError(ClientError, ConnectionError):
    """The connection to the server was lost or could not be made."""


class StudyStopped(SystemExit):
    """The server ends the study early: the solver ends here, with status 0 and without a traceback."""

    def __init__(self, message: str = "the study was stopped") -> None:
        super().__init__(0)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type["StudyStopped"], tuple[str]]:
        return type(self), (self.message,)
