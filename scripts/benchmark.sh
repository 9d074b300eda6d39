#!/bin/sh
# Times side by side in one run; ratios are printed, numbers go to results/benchmarks. Parts: sh scripts/benchmark.sh heads
set -eu
NEEDS="requirements-search.txt requirements-dev.txt"
. "$(dirname "$0")/env.sh"
[ $# -gt 0 ] || set -- evaluation heads features cost gpu
for PART in "$@"; do
    echo "== $PART"
    "$PY" "benchmarks/$PART.py"
done
