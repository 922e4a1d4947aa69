"""One Slurm for all tests of this folder; they are skipped where there cannot be one, and say why.

With MELISSA_REQUIRE_SLURM=1, as in CI, that is a failure.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))

from cluster import Cluster, missing
from studies import Study


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Return a running Slurm of one node."""
    if (reason := missing()) is not None:
        if os.environ.get("MELISSA_REQUIRE_SLURM") == "1":
            pytest.fail(f"a Slurm is required (MELISSA_REQUIRE_SLURM=1): {reason}")
        pytest.skip(f"no Slurm: {reason}")
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def slurm_cluster(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Make Slurm's commands speak to the cluster; afterwards no job is left."""
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.clear()


@pytest.fixture
def wait() -> Callable[..., None]:
    """Return what waits for a condition, for a while."""

    def wait(condition: Callable[[], object], what: str = "", timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what or condition}"
            time.sleep(0.05)

    return wait


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    """Return a small study under Slurm."""
    study = Study(tmp_path)
    study.configure({"launcher_config.scheduler": "slurm", "launcher_config.timer_delay": 0.2})
    yield study
    for launcher in study.launchers:
        launcher.kill()
        launcher.communicate()
