"""Print the requirements of the package's extras, one per line, for pip: ``python ci/extra.py test``."""

import sys
import tomllib
from pathlib import Path

extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
for name in sys.argv[1:]:
    print("\n".join(extras[name]))
