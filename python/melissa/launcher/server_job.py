"""The server's job: its command, and what it said when it ended."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from melissa.launcher.study_folder import StudyFolder
from melissa.scheduler.job import JobKind, JobRequest

__all__ = ["server_request"]


def server_request(
    folder: StudyFolder,
    environment: Mapping[str, str],
    *,
    config_path: Path,
    project_dir: Path,
    preprocessing_commands: Sequence[str],
    keep_output: bool,
) -> JobRequest:
    """Return the request for the server's job; preprocessing commands run before it, in the same shell."""
    name = config_path.name if config_path.parent == project_dir else str(config_path)
    command = [
        sys.executable,
        "-P",  # the working directory is full of the user's files: none of them is to pass for a module
        "-m",
        "melissa.server",
        "--project_dir",
        str(project_dir),
        "--config_name",
        name,
    ]
    if preprocessing_commands:
        script = folder.own / "server.sh"
        lines = [*preprocessing_commands, f"exec {shlex.join(command)}", ""]
        script.write_text("\n".join(lines), encoding="utf-8")
        command = ["/bin/bash" if Path("/bin/bash").exists() else "/bin/sh", str(script)]
    return JobRequest(
        name="server",
        command=command,
        directory=folder.path,
        environment=environment,
        stdout=folder.stdout / "server.out" if keep_output else None,
        stderr=folder.stdout / "server.err" if keep_output else None,
        kind=JobKind.SERVER,
    )
