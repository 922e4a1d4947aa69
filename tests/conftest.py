"""What holds for all tests."""

import os
import sys
from types import ModuleType

import pytest

# TensorBoard's reader takes its file functions from TensorFlow where that is installed: seconds to import,
# and beside torch some builds of the two abort the process.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))

# Open MPI asks root to say twice that it means it; CI is root.
if os.getuid() == 0:
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, let those that share a costly fixture run in the same one.

    A study that ten tests look at runs once, then, and not once in each process.
    """
    for item in items:
        place = _place_of_shared_fixture(item)
        if place is not None and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(place))


def _place_of_shared_fixture(item: pytest.Item) -> str | None:
    """Return the test file, or the folder, of a fixture for several tests that `item` uses; None without."""
    definitions = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009
    places = {used[-1].baseid for used in definitions if used[-1].scope != "function"}
    # Fixtures of pytest and of its plugins, which cost nothing, have other places.
    return max((place for place in places if place.startswith("tests/")), default=None)
