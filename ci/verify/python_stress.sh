#!/usr/bin/env bash
# Buffers under Python threads with a switch interval of one microsecond, the long form of tests/extension/test_stress.py:
# every payload stamped and checked, every sample delivered, every thread at the end of data.
#
# Bound: 60 s for each of two tests of four kinds of buffer, 9 minutes in all; `make test` runs 1 s of each. Needs the
# extension (make test builds it).
set -euo pipefail
cd "$(dirname "$0")/../.."

MELISSA_LONG=1 exec python -m pytest -q -s tests/extension/test_stress.py
