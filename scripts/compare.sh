#!/bin/sh
# The paper's comparison: every method at every code length and seed, tables and figures in results/$NAME. Run again
# after a kill, it does what is missing.
#   DATASET=cifar10 SEEDS="0 1 2" sh scripts/compare.sh
set -eu
ENGINE=${ENGINE:-local}             # or ray: on this machine, or on the cluster at RAY_ADDRESS (HOST:PORT)
[ "$ENGINE" = local ] || NEEDS=requirements-scale.txt
. "$(dirname "$0")/env.sh"

DATASET=${DATASET:-digits}
NAME=${NAME:-compare_$DATASET}
DATA_DIR=${DATA_DIR:-data/$DATASET}
TEACHER=${TEACHER:-efficientnet_lite2}
TEACHER_HASHING=${TEACHER_HASHING:-cibhash}
STUDENT=${STUDENT:-efficientnet_lite0}
FLAGS=${FLAGS:-}                    # for every run, such as "--precision bfloat16"
STUDENT_FLAGS=${STUDENT_FLAGS:-}    # for every student, such as "--student-size 112"
BITS=${BITS:-16 32 64}
SEEDS=${SEEDS:-0}
VIEWS=${VIEWS:-6}
TEACHER_EPOCHS=${TEACHER_EPOCHS:-100}
EPOCHS=${EPOCHS:-60}
DEVICE=${DEVICE:-auto}
CACHE_DIR=${CACHE_DIR:-cache}
AGAINST=${AGAINST:-}                # the method that the others are tested against; without it brcd
PRIMARY=${PRIMARY:-}                # the comparisons that are claims, such as "sshp:kl ashp:kl"; without it all
REDRAW=${REDRAW:-}                  # yes: each seed also draws the views and, of folder and lists, the split
JOBS=${JOBS:-}                      # students side by side; without it as many as there are GPUs, else cores
GPUS=${GPUS:-}                      # of Ray: share of a GPU a student, such as 0.5

[ $# -gt 0 ] || set -- none rkd pkt sp kl crd sskd crcd packd brcd

"$PY" -m scripts.compare --name "$NAME" --dataset "$DATASET" --data-dir "$DATA_DIR" --teacher "$TEACHER" \
    --teacher-hashing "$TEACHER_HASHING" --student "$STUDENT" --flags="$FLAGS" --student-flags="$STUDENT_FLAGS" \
    --bits $BITS --seeds $SEEDS --views "$VIEWS" --teacher-epochs "$TEACHER_EPOCHS" --epochs "$EPOCHS" --device "$DEVICE" --cache-dir "$CACHE_DIR" \
    --engine "$ENGINE" --ray "$([ "$ENGINE" = local ] || echo "${RAY_ADDRESS:-}")" \
    ${AGAINST:+--against "$AGAINST"} ${PRIMARY:+--primary $PRIMARY} ${REDRAW:+--redraw} \
    ${JOBS:+--jobs "$JOBS"} ${GPUS:+--gpus "$GPUS"} --methods "$@"
