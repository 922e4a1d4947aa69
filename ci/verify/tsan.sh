#!/usr/bin/env bash
# ThreadSanitizer on rust/melissa-core/examples/stress.rs: buffers of every kind and sessions with clients, under more
# threads than cores, without a report. A planted race must be reported, and planted defects (src/planted.rs) be found:
# by ThreadSanitizer those that weaken an ordering, which no processor of this kind shows; by it or by the stress's own
# checks of payloads and deliveries the others.
#
#   ci/verify/tsan.sh [SECONDS]
#
# Bound: SECONDS (default 60) of rounds, and at most 30 for each planted defect (each took 1 to 3). Builds of their own, of
# two minutes on two cores; the rest takes about SECONDS + 20.
#
# ThreadSanitizer sees the orders that actually came about, of those that it ran. It does not model fences (this crate's
# serve wake-ups only), and sees no memory ordering weaker than the processor's. The standard library is not instrumented;
# --cfg tsan makes the locks of the crate visible (src/tsan.rs).
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=${1:-60}
target=$(rustc -vV | sed -n 's/^host: //p')
folder=${CARGO_TARGET_DIR:-target}/tsan
stress=$folder/$target/debug/examples/stress
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# The sanitizer's flags are unstable; a stable compiler takes them all the same.
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="--cfg tsan -Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer"
export CARGO_TARGET_DIR=$folder
export TSAN_OPTIONS="suppressions=$PWD/ci/verify/tsan_suppressions.txt history_size=7 ${TSAN_OPTIONS:-}"

build() {
  cargo build --quiet --locked --package melissa-core --example stress --target "$target" "$@"
}

# fails_with TEXT COMMAND...: the command must fail, and its output hold the text.
fails_with() {
  local text=$1
  shift
  if "$@" >"$log" 2>&1; then
    echo "not found: $*" >&2
    return 1
  fi
  grep -q "$text" "$log" || { tail -n 50 "$log" >&2; echo "failed for another reason: $*" >&2; return 1; }
}

build --features planted
for bug in weak-unpin weak-publish; do
  echo "planted: $bug"
  fails_with "WARNING: ThreadSanitizer: data race" \
    env MELISSA_PLANTED="$bug" TSAN_OPTIONS="$TSAN_OPTIONS halt_on_error=1" "$stress" --seconds 30
done
for bug in pin-dropped-early pin-unchecked published-unwritten freed-under-pin victim-unseen ticket-twice; do
  echo "planted: $bug"
  fails_with "ThreadSanitizer: data race\|panicked at" \
    env MELISSA_PLANTED="$bug" TSAN_OPTIONS="$TSAN_OPTIONS halt_on_error=1" "$stress" --seconds 30
done

build
echo "a planted race is reported"
fails_with "WARNING: ThreadSanitizer: data race" "$stress" --race

echo "buffers and sessions are raced for $seconds s"
"$stress" --seconds "$seconds" || { echo "ThreadSanitizer or the stress itself has found something" >&2; exit 1; }
