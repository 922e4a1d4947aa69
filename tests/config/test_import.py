"""``import melissa``: nothing but NumPy is needed, and the short names load when they are used."""

import subprocess
import sys

import pytest

import melissa

LAZY = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "scipy", "pydantic", "mpi4py", "rapidjson", "rich"}:
            raise ImportError("not here: " + name)
        return None
sys.meta_path.insert(0, Refuse())
import melissa, melissa_api
loaded = {"torch", "scipy", "pydantic", "mpi4py", "melissa._melissa"} & set(sys.modules)
assert not loaded, loaded
assert "TorchServer" in dir(melissa)
from melissa import ConfigurationFileError, ParameterSamplerType
assert ParameterSamplerType.HALTON.value == 1
try:
    melissa.TorchServr
except AttributeError as error:
    assert "TorchServr" in str(error)
else:
    raise AssertionError("no error for an unknown name")
print("good")
"""


def test_importing_melissa_needs_numpy_alone_and_loads_nothing_heavy():
    result = subprocess.run(
        [sys.executable, "-c", LAZY], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout.strip() == "good", result.stderr


@pytest.mark.parametrize("name", melissa.__all__)
def test_every_short_name_loads(name):
    if name in {"TorchServer"}:
        pytest.importorskip("torch")
    assert getattr(melissa, name) is getattr(melissa, name)
    assert name in dir(melissa)
