"""What the launcher tells a server through environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from melissa.exceptions import FatalError, MelissaError
from melissa.utility.addresses import own_host
from melissa.utility.study_key import read_study_key

__all__ = ["StudyEnvironment"]


@dataclass(frozen=True)
class StudyEnvironment:
    """The launcher's variables: where it listens, the study's key and epoch, the folder of the results."""

    launcher_address: str
    key: bytes = field(repr=False)
    study_epoch: int
    output_dir: Path
    restart: int = 0
    """How often the study's server was started before."""

    @property
    def own_host(self) -> str:
        """Where this process is reached: on the loopback interface when the launcher is."""
        return own_host(self.launcher_address)

    @staticmethod
    def is_given(environment: Mapping[str, str] = os.environ) -> bool:
        """Say whether a launcher has started this process."""
        return "MELISSA_LAUNCHER_ADDRESS" in environment

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> StudyEnvironment:
        """Read the variables; `FatalError` names the one that is missing or wrong."""
        names = ("MELISSA_LAUNCHER_ADDRESS", "MELISSA_KEY_FILE", "MELISSA_STUDY_EPOCH", "MELISSA_OUTPUT_DIR")
        missing = [name for name in names if not environment.get(name)]
        if missing:
            raise FatalError(
                f"no {', no '.join(missing)} in the environment: melissa-server is started by the launcher, "
                "which sets them. Start the study with: melissa-launcher --config_name <configuration>"
            )
        address, key_file, epoch, output_dir = (environment[name] for name in names)
        if not epoch.isdecimal():
            raise FatalError(f"MELISSA_STUDY_EPOCH is {epoch!r}: a whole number was expected")
        try:
            key = read_study_key(key_file)
        except (OSError, MelissaError) as error:
            raise FatalError(f"the study key (MELISSA_KEY_FILE) cannot be read: {error}") from error
        restart = environment.get("MELISSA_RESTART", "0")
        if not restart.isdecimal():
            raise FatalError(f"MELISSA_RESTART is {restart!r}: a whole number was expected")
        return cls(
            launcher_address=address,
            key=key,
            study_epoch=int(epoch),
            output_dir=Path(output_dir),
            restart=int(restart),
        )
