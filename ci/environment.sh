#!/usr/bin/env bash
# The virtual environment of the build: made when absent, with a PyTorch and with maturin. A second call does nothing.
#   VENV    its folder; one that is there already is used, with the torch that is in it
#   PYTHON  the Python to make it with
#   TORCH   what pip installs as PyTorch: a requirement, a wheel, with options if need be
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
torch=${TORCH:-torch}
stamps=$venv/.melissa

if [[ ! -x $venv/bin/python ]]; then
    if [[ -e $venv ]] && [[ -n $(ls -A "$venv") ]]; then
        printf '%s is no virtual environment: it has no bin/python. Name another folder: make VENV=...\n' "$venv" >&2
        exit 1
    fi
    ci/step.sh "virtual environment" "${PYTHON:-python3}" -m venv "$venv"
fi
if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    printf '%s has an older Python than 3.11. Name another environment: make VENV=...\n' "$venv" >&2
    exit 1
fi
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    ci/step.sh "pip" "$venv/bin/python" -m ensurepip
fi
mkdir -p "$stamps"

if [[ $(cat "$stamps/torch" 2>/dev/null) != "$torch" ]]; then
    if [[ $torch != torch ]] || ! "$venv/bin/python" -c 'import torch' >/dev/null 2>&1; then
        read -r -a words <<<"$torch"
        ci/step.sh "PyTorch" "$venv/bin/python" -m pip install "${words[@]}"
    fi
    printf '%s\n' "$torch" >"$stamps/torch"
fi

maturin=$(sed -n 's/^requires = \["\(maturin[^"]*\)"\]/\1/p' pyproject.toml)
if [[ $(cat "$stamps/maturin" 2>/dev/null) != "$maturin" ]]; then
    ci/step.sh "maturin" "$venv/bin/python" -m pip install "$maturin"
    printf '%s\n' "$maturin" >"$stamps/maturin"
fi
