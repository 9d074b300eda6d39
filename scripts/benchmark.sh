#!/bin/sh
# Times side by side in one run; ratios are printed, numbers go to results/benchmarks.
set -eu
. "$(dirname "$0")/env.sh"
"$PY" benchmarks/evaluation.py
"$PY" benchmarks/features.py
