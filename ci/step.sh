#!/usr/bin/env bash
# One step of a build: one line when it goes well, the end of its log when it does not.
#   ci/step.sh NAME COMMAND...
# The whole output is in target/log/NAME.log. STEP_DETAIL=1 adds the output's last line to the step's.
set -euo pipefail
cd "$(dirname "$0")/.."

name=$1
shift
log=target/log/${name//[^A-Za-z0-9]/-}.log
mkdir -p target/log

start=$SECONDS
printf '%-32s' "$name"
if "$@" </dev/null >"$log" 2>&1; then
    detail=""
    if [[ ${STEP_DETAIL:-} == 1 ]]; then
        detail=" $(sed '/^[[:space:]]*$/d' "$log" | tail -n 1)"
    fi
    printf 'ok %5d s %s\n' "$((SECONDS - start))" "$detail"
else
    status=$?
    printf 'FAILED after %d s: %s\n' "$((SECONDS - start))" "$*"
    tail -n 80 "$log" | sed 's/^/    /'
    printf 'The whole log: %s\n' "$PWD/$log"
    exit "$status"
fi
