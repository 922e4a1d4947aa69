#!/usr/bin/env bash
# Installs what an extra of the package needs.
#   ci/requirements.sh EXTRA
set -euo pipefail
cd "$(dirname "$0")/.."

"${VENV:-.venv}/bin/python" -m pip install -r <("${VENV:-.venv}/bin/python" ci/extra.py "$1")
