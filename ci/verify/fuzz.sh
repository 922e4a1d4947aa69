#!/usr/bin/env bash
# Fuzzes the parsers and the session with libFuzzer: ci/verify/fuzz.sh [SECONDS [TARGET...]]
#
# Each target runs for SECONDS (60 when not said), one process, under the address sanitizer; the corpus starts from the
# frames under tests/data/wire and is kept in rust/fuzz/corpus. Ends with a status other than 0 at the first finding,
# and prints where the input lies that shows it. SANITIZER=none does without the sanitizer.
# Cost: a build of about two minutes of one core the first time, then SECONDS for each of the three targets.
# The compiler is the stable one: RUSTC_BOOTSTRAP lets it take the sanitizer's switch.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=${1:-60}
shift $(($# > 0))
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(header handshake session)
export RUSTC_BOOTSTRAP=1
fuzz=rust/fuzz

cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz

python3 $fuzz/seeds.py $fuzz/corpus
sanitizer=(--sanitizer "${SANITIZER:-address}")
cargo fuzz build --fuzz-dir $fuzz "${sanitizer[@]}"
for target in "${targets[@]}"; do
    mkdir -p "$fuzz/artifacts/$target"
    log=$fuzz/artifacts/$target.log
    status=0
    # The thread of a session ends with its process: what it holds then is no leak.
    cargo fuzz run --fuzz-dir $fuzz "${sanitizer[@]}" "$target" -- -max_total_time="$seconds" -dict=$fuzz/melissa.dict \
        -max_len=8192 -timeout=30 -detect_leaks=0 -print_final_stats=1 >"$log" 2>&1 || status=$?
    if [ $status -ne 0 ]; then
        tail -n 60 "$log"
        echo "$target: a finding. The input and its replay:" >&2
        find "$fuzz/artifacts/$target" -type f -newer $fuzz/seeds.py >&2
        echo "  RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir $fuzz ${sanitizer[*]} $target FILE" >&2
        exit 1
    fi
    coverage=$(grep -o 'cov: [0-9]* ft: [0-9]*' "$log" | tail -n 1)
    echo "$target: $(awk '/number_of_executed_units/ { print $2 }' "$log") executions, $coverage"
done
