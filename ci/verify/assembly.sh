#!/usr/bin/env bash
# Assembly across connections and server ranks: explores every schedule of the model's larger studies
# (rust/melissa-verify/tests/assembly_model), each fault of the model, and the deadlocks of promises that are taken in no
# order and of samplers in step; then asks the same of the real session over sockets, with random studies (tests/session/replacement.rs).
#
# Bound: 13 large and 13 small configurations, every state of each (9.7 million in all; up to 3 simulations of 2 ranks, 2
# server ranks, 4 time steps, 2 replacements); 2,000 random studies of up to 6 simulations.
# Cost: two minutes of one core for the large configurations, a quarter of one for the rest of the model, three quarters
# of a minute of processor time (one to two of the clock) for the studies; 300 MB of memory.
# Exit status: that of the first finding.
set -euo pipefail
cd "$(dirname "$0")/../.."
export MELISSA_LONG=1
cargo test --locked -p melissa-verify --test assembly_model -- --nocapture --test-threads=1
cargo test --locked -p melissa-core --test session -- replacement schedules
