#!/usr/bin/env bash
# What each attack frame costs a session: a refusal with a code within 10 ms of its last byte, and no allocation over 1 MB.
#
# Sends every file under tests/data/wire/attacks at each stage of a connection, five times, and prints the slowest and
# the largest. Bound: median of the five below 10 ms. Then 40,000 mutated frames, each beside an honest client.
# Cost: about 20 seconds, and the build of two tests.
set -euo pipefail
cd "$(dirname "$0")/../.."

MELISSA_LONG=1 cargo test --locked --package melissa-core --test attack_costs -- --nocapture
MELISSA_LONG=1 cargo test --locked --package melissa-core --test session mutations
