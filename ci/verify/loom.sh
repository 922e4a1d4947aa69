#!/usr/bin/env bash
# The loom models, each with more preemptions than in `make test`: so many more, by default 1.
#   ci/verify/loom.sh [MORE]
set -euo pipefail
cd "$(dirname "$0")/../.."
MELISSA_MORE_PREEMPTIONS=${1:-1} ci/models.sh loom
