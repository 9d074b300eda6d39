#!/bin/sh
# The teacher, as in the paper: ViT-B/16 with a 64-bit CIBHash head on CIFAR-10. Downloads CIFAR-10 into
# ./data/cifar10 and the ImageNet weights through torchvision. Running it again resumes.
#   BITS=32 VIEWS=16 sh scripts/run.sh --device cuda:1
set -eu
. "$(dirname "$0")/env.sh"

DATASET=${DATASET:-cifar10}
DATA_DIR=${DATA_DIR:-data/$DATASET}
BACKBONE=${BACKBONE:-vit_b_16}
WEIGHTS=${WEIGHTS:-pretrained}      # or a state dict's file
BITS=${BITS:-64}
VIEWS=${VIEWS:-0}                   # 0: two new views of every image each epoch; N: a cached bank of N
SIZE=${SIZE:-}                      # pixels that the networks see; empty: 224, of a timm network its own
EPOCHS=${EPOCHS:-200}
LR=${LR:-5e-4}
BATCH_SIZE=${BATCH_SIZE:-64}
TEMPERATURE=${TEMPERATURE:-0.3}
KL_WEIGHT=${KL_WEIGHT:-0.001}
VALIDATE_EVERY=${VALIDATE_EVERY:-5}
PATIENCE=${PATIENCE:-3}
SEED=${SEED:-0}
DEVICE=${DEVICE:-auto}
ENGINE=${ENGINE:-auto}              # what runs the backbone: openvino on a CPU, torch on a GPU
CACHE_DIR=${CACHE_DIR:-cache}
RUN_DIR=${RUN_DIR:-runs/teacher_${DATASET}_${BACKBONE}_${BITS}bits}

"$PY" train_teacher.py --dataset "$DATASET" --data-dir "$DATA_DIR" --backbone "$BACKBONE" --weights "$WEIGHTS" \
    --bits "$BITS" --views "$VIEWS" ${SIZE:+--size "$SIZE"} --engine "$ENGINE" --epochs "$EPOCHS" --lr "$LR" --batch-size "$BATCH_SIZE" \
    --temperature "$TEMPERATURE" --kl-weight "$KL_WEIGHT" --validate-every "$VALIDATE_EVERY" --patience "$PATIENCE" \
    --seed "$SEED" --device "$DEVICE" --cache-dir "$CACHE_DIR" --run-dir "$RUN_DIR" --resume "$@"
