#!/usr/bin/env bash
# Runs the study of examples/heat-pde to its end, and says where its pictures are.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$(cd "${VENV:-.venv}" && pwd)
# The configuration names the solver's interpreter "python".
export PATH=$venv/bin:$PATH

results() {
    find examples/heat-pde -mindepth 1 -maxdepth 1 -type d -name 'melissa-*' | sort
}

before=$(results)
melissa-launcher --config_name examples/heat-pde/config_heat.json
output=$(comm -13 <(printf '%s\n' "$before") <(results) | tail -n 1)

pictures=$(find "$output" -maxdepth 1 -name '*.png' | sort)
if [[ -z $pictures ]]; then
    printf 'The study has ended well, but there are no pictures in %s\n' "$PWD/$output" >&2
    exit 1
fi
printf '\nPictures of the study:\n'
printf "  $PWD/%s\n" $pictures
