#!/bin/sh
# BRCD from the teacher of scripts/run.sh to EfficientNet-B0, with the paper's hyperparameters. Running it again resumes.
#   BITS=32 METHOD=none sh scripts/ours_distill_run.sh
set -eu
. "$(dirname "$0")/env.sh"

DATASET=${DATASET:-cifar10}
DATA_DIR=${DATA_DIR:-data/$DATASET}
BITS=${BITS:-64}
TEACHER=${TEACHER:-runs/teacher_${DATASET}_${BACKBONE:-vit_b_16}_${BITS}bits}
STUDENT=${STUDENT:-efficientnet_b0}
STUDENT_WEIGHTS=${STUDENT_WEIGHTS:-pretrained}
METHOD=${METHOD:-brcd}
ALPHA=${ALPHA:-0.8}                 # share of the individual space in the positive
MARGIN=${MARGIN:-0.5}               # bits whose |cluster mean| is smaller are masked
CLUSTERS=${CLUSTERS:-10}
VIEWS=${VIEWS:-0}                   # 0: two new views of every image each epoch; N: a cached bank of N
EPOCHS=${EPOCHS:-400}
LR=${LR:-1e-3}
BATCH_SIZE=${BATCH_SIZE:-64}
TEMPERATURE=${TEMPERATURE:-0.3}
VALIDATE_EVERY=${VALIDATE_EVERY:-10}
PATIENCE=${PATIENCE:-5}
SEED=${SEED:-0}
DEVICE=${DEVICE:-auto}
CACHE_DIR=${CACHE_DIR:-cache}
RUN_DIR=${RUN_DIR:-runs/${METHOD}_${DATASET}_${STUDENT}_${BITS}bits}

"$PY" distill.py --dataset "$DATASET" --data-dir "$DATA_DIR" --teacher "$TEACHER" --student "$STUDENT" \
    --student-weights "$STUDENT_WEIGHTS" --bits "$BITS" --method "$METHOD" --alpha "$ALPHA" --margin "$MARGIN" \
    --clusters "$CLUSTERS" --views "$VIEWS" --epochs "$EPOCHS" --lr "$LR" --batch-size "$BATCH_SIZE" \
    --temperature "$TEMPERATURE" --validate-every "$VALIDATE_EVERY" --patience "$PATIENCE" --seed "$SEED" \
    --device "$DEVICE" --cache-dir "$CACHE_DIR" --run-dir "$RUN_DIR" --resume "$@"
