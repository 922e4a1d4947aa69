#!/usr/bin/env bash
# Assembly across connections and server ranks: explores every schedule of the model's larger studies
# (rust/melissa-verify/tests/assembly_model), each fault of the model, and the deadlocks of promises that are taken in no
# order and of samplers in step; then asks the same of the real sessions over sockets, with random studies
# (tests/session/replacement.rs) and random schedules on one to three server ranks (schedules.rs).
#
# Bound: 19 large and 17 small configurations, every state of each (up to 3 simulations of 2 ranks, 3 server ranks, 4 time
# steps, 2 replacements); 2,000 random studies of up to 6 simulations; 10,000 random schedules of 4 simulations.
# Cost: some minutes of one core for the large configurations, less than one for the rest of the model; seven minutes of the
# clock for studies and schedules, on two cores that had seven times as much to do.
# Exit status: that of the first finding.
set -euo pipefail
cd "$(dirname "$0")/../.."
export MELISSA_LONG=1
cargo test --locked -p melissa-verify --test assembly_model -- --nocapture --test-threads=1
cargo test --locked -p melissa-core --test session -- replacement schedules
