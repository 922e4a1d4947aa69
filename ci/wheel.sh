#!/usr/bin/env bash
# Installs the wheel of dist/ into an empty environment, and uses what a user of it uses first.
set -euo pipefail
cd "$(dirname "$0")/.."

wheel=$(find "$PWD/dist" -name 'melissa_dl-*.whl' -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2-)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install "$wheel"
cd "$folder"
export PATH=$folder/venv/bin:$PATH

melissa-launcher --version
python -c 'import melissa, melissa_api, melissa._melissa; print("imported from", melissa.__file__)'
python -c 'import importlib.util as i; assert not [m for m in ("torch", "tensorflow", "mpi4py") if i.find_spec(m)]'
melissa-launcher --example heat-pde study
melissa-launcher --config_name study/config_heat.json --dry-run
echo "$(basename "$wheel") works in an empty environment"
