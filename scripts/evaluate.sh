#!/bin/sh
# SSHP, ASHP and the teacher on the test queries: table, test.json, .csv and figures in the run's folder.
#   RUN=runs/brcd_cifar10_efficientnet_b0_64bits sh scripts/evaluate.sh --dump-codes codes
set -eu
. "$(dirname "$0")/env.sh"

DATASET=${DATASET:-cifar10}
BITS=${BITS:-64}
RUN=${RUN:-runs/${METHOD:-brcd}_${DATASET}_${STUDENT:-efficientnet_b0}_${BITS}bits}
QUERIES=${QUERIES:-test}            # or val, what model selection saw
PICTURES=${PICTURES:-8}             # queries drawn with their top 10

"$PY" evaluate.py --run "$RUN" --queries "$QUERIES" --pictures "$PICTURES" "$@"
