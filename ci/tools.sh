#!/usr/bin/env bash
# Are the tools there that a build needs: Python, Rust, a C compiler? Says what to do about what is missing.
#   PYTHON: the Python to use, by default python3
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
python_wanted=$(sed -n 's/^requires-python = ">=\(.*\)"/\1/p' pyproject.toml)
rust_wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
problems=()

at_least() { # VERSION WANTED
    [[ $(printf '%s\n' "$1" "$2" | sort -V | head -n 1) == "$2" ]]
}

# Installs Debian packages where that can be done without asking: as root.
install_packages() {
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        return 1
    fi
    ci/step.sh "apt-get install $*" bash -c 'apt-get update && apt-get install -y --no-install-recommends "$@"' apt "$@"
}

if ! python_found=$("$python" -c 'import platform; print(platform.python_version())' 2>/dev/null); then
    problems+=("Python >= $python_wanted is needed, and there is no $python. Install it, or name one: make PYTHON=/path/to/python3")
elif ! at_least "$python_found" "$python_wanted"; then
    problems+=("Python >= $python_wanted is needed; $python is $python_found. Name another one: make PYTHON=/path/to/python3")
elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian keeps what makes virtual environments in a package of its own.
    install_packages python3-venv || true
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        problems+=("$python cannot make virtual environments: its module venv or ensurepip is missing (Debian: apt install python3-venv)")
    fi
fi

if ! rust_found=$(cargo --version 2>/dev/null); then
    problems+=("Rust >= $rust_wanted is needed, and there is no cargo. Install it from https://rustup.rs")
elif ! at_least "$(cut -d ' ' -f 2 <<<"$rust_found")" "$rust_wanted"; then
    problems+=("Rust >= $rust_wanted is needed; this is $rust_found. Update it: rustup update stable")
fi

if ! command -v cc >/dev/null; then
    install_packages gcc libc6-dev || true
    if ! command -v cc >/dev/null; then
        problems+=("a C compiler is needed: Rust links with it. There is no cc (Debian: apt install gcc libc6-dev)")
    fi
fi

if ((${#problems[@]})); then
    printf 'Melissa cannot be built here yet:\n' >&2
    printf '  %s\n' "${problems[@]}" >&2
    exit 1
fi
