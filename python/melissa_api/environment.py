"""What the launcher tells a solver through environment variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from melissa.exceptions import AuthenticationError, ClientError
from melissa.utility.study_key import read_study_key

__all__ = ["SolverEnvironment"]


@dataclass(frozen=True)
class SolverEnvironment:
    """Where the server is, and which start of which simulation this solver is."""

    server_address: str
    key: bytes = field(repr=False)
    study_epoch: int
    simulation_id: int
    attempt: int

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> "SolverEnvironment":
        """Read the variables; `ClientError` names those that are missing, or the one that is wrong."""
        simulation = "MELISSA_SIMU_ID" if "MELISSA_SIMU_ID" in environment else "MELISSA_SIM_ID"
        numbers = ["MELISSA_STUDY_EPOCH", simulation, "MELISSA_ATTEMPT"]
        texts = ["MELISSA_SERVER_ADDRESS", "MELISSA_KEY_FILE"]
        if missing := [name for name in texts + numbers if not environment.get(name)]:
            raise ClientError(
                f"{', '.join(missing)} not set: a solver that sends to Melissa is started by "
                "melissa-launcher, which sets it (client_config.executable_command of the study)."
            )
        for name in numbers:
            if not environment[name].isdecimal():
                raise ClientError(f"{name} is {environment[name]!r}, expected a whole number.")
        key_file = environment["MELISSA_KEY_FILE"]
        try:
            key = read_study_key(key_file)
        except OSError as error:
            raise ClientError(
                f"the study key cannot be read: {key_file} (MELISSA_KEY_FILE): {error.strerror}. A running "
                "study has it in its output folder: does this machine see that folder?"
            ) from error
        except AuthenticationError as error:
            raise ClientError(f"MELISSA_KEY_FILE: {error}") from error
        return cls(environment["MELISSA_SERVER_ADDRESS"], key, *(int(environment[name]) for name in numbers))
