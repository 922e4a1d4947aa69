"""Where figures were measured: what of a machine can change them."""

import os
import platform
import re
import subprocess
import time
from pathlib import Path

import numpy as np

__all__ = ["describe_machine"]


def describe_machine(command: str) -> dict[str, str]:
    """Describe the machine, the versions and the day; `command` is what the figures are made with."""
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "commit": _output("git", "describe", "--always", "--dirty"),
        "CPU": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "transparent huge pages": _huge_pages(),
        "load before": f"{os.getloadavg()[0]:.2f}, the average of a minute",
        "versions": ", ".join(
            [
                f"CPython {platform.python_version()}",
                f"NumPy {np.__version__}",
                _output("rustc", "--version"),
            ]
        ),
    }


def _cpu_model() -> str:
    """Return the model's name, family, model and stepping: a virtual machine's name alone says little."""
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    name = fields.get("model name", platform.machine())
    numbers = [f"{key} {fields[key]}" for key in ("cpu family", "model", "stepping") if key in fields]
    virtual = ["virtual"] if "hypervisor" in fields.get("flags", "").split() else []
    return f"{name} ({', '.join([*numbers, *virtual])})" if numbers else name


def _huge_pages() -> str:
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    found = re.search(r"\[(\w+)\]", path.read_text()) if path.exists() else None
    return found[1] if found else "not there"


def _output(*command: str) -> str:
    """Return what a command says in a line, or that it cannot be asked."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"no {command[0]}"
