"""The guard: a small process that cancels the batch jobs of a launcher that is gone, however it ended."""

from __future__ import annotations

import contextlib
import logging
import subprocess
from collections.abc import Sequence

__all__ = ["Guard"]

logger = logging.getLogger("melissa")

_END_TIMEOUT = 60.0
# A job whose sbatch had not answered may still come: its name is cancelled for a minute.
SCRIPT = """\
jobs= sent=
while read -r word value; do
    case $word in
        sent) sent=$value ;;
        job) jobs="$jobs $value" sent= ;;
        none) sent= ;;
    esac
done
[ -z "$jobs" ] || scancel --quiet $jobs
[ -z "$sent" ] || for pause in 0 1 2 4 8 16 30; do sleep $pause; scancel --quiet --name="$sent"; done
"""


class Guard:
    """Is told each job at once: ``sent NAME`` before its sbatch, then ``job NUMBER``, or ``none``."""

    def __init__(self) -> None:
        """Make a guard; it lives from `start` on."""
        self._process: subprocess.Popen[bytes] | None = None
        self._sent = ""

    def start(self, keep_open: Sequence[int]) -> None:
        """Start the process, which holds the descriptors `keep_open` as long as it lives."""
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=tuple(keep_open),
        )

    def tell(self, *words: str) -> None:
        """Tell it what it must know."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._sent = words[1] if words[0] == "sent" else ""
        try:
            self._process.stdin.write(" ".join(words).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            logger.warning(f"if the launcher is killed, nobody cancels {words[-1]}: its guard has died")

    def end(self) -> None:
        """Have it cancel what is left, and wait for that; not where a job may still come."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(OSError):
            process.stdin.close()
        if self._sent:
            logger.warning(f"Slurm may have a job {self._sent}, or not: if it comes, it is cancelled")
            return
        try:
            process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
