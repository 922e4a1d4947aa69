#!/usr/bin/env bash
# The shuttle models with many schedules, by default 100,000 of each kind per model, from a seed of today or a given one.
#   ci/verify/shuttle.sh [SCHEDULES [SEED]]
set -euo pipefail
cd "$(dirname "$0")/../.."
MELISSA_SCHEDULES=${1:-100000} MELISSA_SEED=${2:-$(date +%s)} ci/models.sh shuttle
