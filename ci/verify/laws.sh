#!/usr/bin/env bash
# The laws of the training buffers, in their long form: random schedules of publishes, draws, held views, pauses, cuts,
# restarts with a replay, and ends, over every policy, against a plain model; and mutated snapshots.
#
# Bound: 1,200 schedules of up to 500 steps for each of five policies, more than 10^6 steps in all; 200,000 mutated
# snapshots. Schedules are random anew in each run; one that fails is shortened and shown.
# Cost: two minutes and a quarter on two cores that others were using, 40 s of processor time (a build not counted).
set -euo pipefail
cd "$(dirname "$0")/../.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
MELISSA_LONG=1 cargo test --locked -p melissa-core --test buffer_laws --test snapshot -- --nocapture | tee "$log"

steps=$(sed -n 's/.*laws of .*: \([0-9]*\) steps.*/\1/p' "$log" | awk '{ sum += $1 } END { print sum + 0 }')
echo "steps in all: $steps"
if [ "$steps" -le 1000000 ]; then
    echo "laws.sh: fewer than 10^6 steps ran: see the bound in tests/buffer_laws/main.rs" >&2
    exit 1
fi
