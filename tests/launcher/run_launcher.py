"""Runs a study as ``melissa-launcher`` would, from a configuration that is complete already.

``python run_launcher.py ARGUMENTS`` where ARGUMENTS is JSON: the configuration, the file that stands for it,
the output folder, and constants of the launcher to be made small.
"""

import json
import sys
from pathlib import Path

from rich.console import Console

from melissa.exceptions import MelissaError
from melissa.launcher import launcher

arguments = json.loads(sys.argv[1])
for name, value in arguments["constants"].items():
    assert hasattr(launcher, name)
    setattr(launcher, name, value)
config_path = Path(arguments["config_path"])
study = launcher.Launcher(
    arguments["config"],
    config_path=config_path,
    project_dir=config_path.parent,
    output_dir=Path(arguments["output_dir"]),
    overwrite=arguments["overwrite"],
    console=Console(force_terminal=True, width=90) if arguments["terminal"] else None,
)
try:
    sys.exit(study.run())
except MelissaError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
