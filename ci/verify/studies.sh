#!/usr/bin/env bash
# The heavy forms of tests in Python, those marked `long`: studies of several ranks with TensorFlow, the heat study on two
# ranks, and whatever else has a lighter form in `make test`.
#   ci/verify/studies.sh [WORKERS]    processes side by side, by default 3
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python -m pytest -q -m long -n "${1:-3}" --dist loadfile
