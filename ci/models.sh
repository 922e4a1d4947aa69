#!/usr/bin/env bash
# Runs the models of the core's concurrency (rust/melissa-core/src/models) and says how far each went.
#   ci/models.sh loom|shuttle [FILTER]
# MELISSA_MORE_PREEMPTIONS: so many more than each model's own (loom). MELISSA_SCHEDULES: so many per model (shuttle).
# MELISSA_SEED: another seed than 1 (shuttle). Measured on two cores: the build 60 s, loom 25 s, shuttle 10 s.
set -euo pipefail
cd "$(dirname "$0")/.."

checker=$1
filter=${2:-}
# The switch reaches every crate of the build, so that it has a folder of its own.
export RUSTFLAGS="--cfg $checker" CARGO_TARGET_DIR=$PWD/target/$checker
mkdir -p "$CARGO_TARGET_DIR"  # tee opens its file before cargo has made the folder
cargo test --locked --quiet --package melissa-core --features planted --lib -- \
    --test-threads 1 --nocapture "models::$filter" | tee "$CARGO_TARGET_DIR/models.log"
# A filter that names nothing, or a build without models, is no proof.
grep -Eq '(executions|schedules)' "$CARGO_TARGET_DIR/models.log" || { echo "no model was explored"; exit 1; }
