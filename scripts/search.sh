#!/bin/sh
# A search page over a folder of pictures: exports a student, indexes every picture and serves the page. The student is
# the one in checkpoints/, or with TRAIN=1 (also where a variable of training is set) one trained on these pictures,
# without labels. Running it again indexes what is new or changed and serves (delete RUNS to export or train anew).
#   sh scripts/search.sh PHOTOS
#   TRAIN=1 sh scripts/search.sh PHOTOS
#   BITS=128 PORT=9000 SERVE=no sh scripts/search.sh PHOTOS        all but the page
set -eu
[ $# -eq 1 ] || { echo "error: name the folder of your pictures: sh scripts/search.sh PHOTOS" >&2; exit 2; }
PHOTOS=$(CDPATH= cd -- "$1" 2>/dev/null && pwd) || { echo "error: $1: no such folder, or it can't be entered" >&2; exit 1; }
NEEDS=requirements-search.txt
. "$(dirname "$0")/env.sh"

BITS=${BITS:-64}                    # 64 and 128 are in checkpoints/
READY=${READY:-checkpoints/photos$BITS}
TRAIN=${TRAIN:-${TEACHER:-}${STUDENT:-}${METHOD:-}${TRAIN_IMAGES:-}${VIEWS:-}${TEACHER_EPOCHS:-}${EPOCHS:-}${CLUSTERS:-}}
[ "$TRAIN" != 0 ] || TRAIN=
[ -f "$READY/student/args.yaml" ] || TRAIN=1
TEACHER=${TEACHER:-efficientnet_lite2}
STUDENT=${STUDENT:-efficientnet_lite0}
METHOD=${METHOD:-brcd}
TRAIN_IMAGES=${TRAIN_IMAGES:-5000}  # drawn by SEED
VIEWS=${VIEWS:-4}                   # cached random views an image
TEACHER_EPOCHS=${TEACHER_EPOCHS:-100}
EPOCHS=${EPOCHS:-60}
# Of a few pictures fewer clusters than ten may be all there can be.
CLUSTERS=${CLUSTERS:-$([ "$(find -L "$PHOTOS" -type f 2> /dev/null | head -n 100 | wc -l)" -lt 100 ] && echo auto || echo 10)}
SEED=${SEED:-0}
DEVICE=${DEVICE:-auto}
CACHE_DIR=${CACHE_DIR:-cache}
RUNS=${RUNS:-runs/search_$(basename "$PHOTOS")_$(printf %s "$PHOTOS" | cksum | cut -d ' ' -f 1)${TRAIN:+_trained}}
INDEX=${INDEX:-$RUNS/index}
HOST=${HOST:-127.0.0.1}
PORT=${PORT:-8000}
SERVE=${SERVE:-yes}

part() {
    echo "== $1 ($(date +%H:%M:%S))"
}

of_these() {                        # a command on a sample of the pictures
    "$PY" "$@" --dataset photos --data-dir "$PHOTOS" --train-images "$TRAIN_IMAGES" --split-seed "$SEED" \
        --device "$DEVICE" --cache-dir "$CACHE_DIR"
}

measured() {                        # FILE COMMAND...: the command's table, and all that it said in the file
    said=$1 && shift
    "$@" > "$said"
    grep -v '^{' "$said"
}

if [ -f "$RUNS/export/card.json" ]; then
    :
elif [ -z "$TRAIN" ]; then
    part "export of $READY"
    TRAIN_IMAGES=200                # that the file's codes are checked with
    of_these export.py --run "$READY/student" --out "$RUNS/export"
else
    part "teacher $TEACHER, $BITS bits"
    of_these train_teacher.py --backbone "$TEACHER" --bits "$BITS" --views "$VIEWS" --epochs "$TEACHER_EPOCHS" \
        --seed "$SEED" --run-dir "$RUNS/teacher" --resume
    part "student $STUDENT, $METHOD"
    "$PY" distill.py --teacher "$RUNS/teacher" --student "$STUDENT" --method "$METHOD" --clusters "$CLUSTERS" \
        --epochs "$EPOCHS" --seed "$SEED" --run-dir "$RUNS/student" --resume
    part "evaluation"
    measured "$RUNS/evaluation.txt" "$PY" evaluate.py --run "$RUNS/student"
    if [ -f "$READY/student/args.yaml" ]; then
        part "evaluation of $READY, on the same pictures"
        measured "$RUNS/ready.txt" of_these evaluate.py --run "$READY/student" --json "$RUNS/ready.json"
    fi
    part "export"
    "$PY" export.py --run "$RUNS/student" --out "$RUNS/export"
fi
part "index"
"$PY" -m search add --index "$INDEX" --student "$RUNS/export" "$PHOTOS"
part "ready: $PY -m search serve --index $INDEX"
[ "$SERVE" = no ] || exec "$PY" -m search serve --index "$INDEX" --host "$HOST" --port "$PORT"
