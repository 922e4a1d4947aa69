#!/usr/bin/env bash
# Builds the extension and installs the package in place, with what training and the examples need.
#   ci/extension.sh PROFILE
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$(cd "${VENV:-.venv}" && pwd)
export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH

maturin develop --locked --profile "$1" --extras torch,examples
