"""The study of the README runs as it stands there, but for the number of simulations."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import melissa

README = Path(__file__).parents[2] / "README.md"


def test_the_study_of_the_readme_runs(tmp_path):
    blocks = re.findall(r"```\w+\n((?:#|//) (\w+\.\w+).*?)```", README.read_text(), re.DOTALL)
    files = {name: text for text, name in blocks}
    assert set(files) == {"server.py", "study.json", "solver.py"}
    files["study.json"], shortened = re.subn(r'("parameter_sweep_size": )\d+', r"\g<1>4", files["study.json"])
    assert shortened == 1
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    environment = os.environ | {"PYTHONPATH": str(Path(melissa.__file__).parents[1])}
    command = [sys.executable, "-m", "melissa.launcher", "--config_name", "study.json"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (report,) = tmp_path.glob("melissa-*/study_report.json")
    ledger = json.loads(report.read_text())["ledger"]
    assert ledger["declared"] == ledger["trained"] == 400
