#!/bin/sh
# A search page over a folder of pictures: trains on them without labels, exports the student, indexes every picture and
# serves the page. Running it again indexes what is new or changed and serves; training is done once (delete RUNS to
# train anew).
#   sh scripts/search.sh PHOTOS
#   BITS=32 PORT=9000 sh scripts/search.sh PHOTOS
#   SERVE=no sh scripts/search.sh PHOTOS        all but the page
set -eu
[ $# -eq 1 ] || { echo "error: name the folder of your pictures: sh scripts/search.sh PHOTOS" >&2; exit 2; }
PHOTOS=$(CDPATH= cd -- "$1" 2>/dev/null && pwd) || { echo "error: $1: no such folder, or it can't be entered" >&2; exit 1; }
NEEDS=requirements-search.txt
. "$(dirname "$0")/env.sh"

TEACHER=${TEACHER:-efficientnet_lite2}
STUDENT=${STUDENT:-efficientnet_lite0}
METHOD=${METHOD:-brcd}
BITS=${BITS:-64}
TRAIN_IMAGES=${TRAIN_IMAGES:-5000}  # drawn by SEED
VIEWS=${VIEWS:-4}                   # cached random views an image
TEACHER_EPOCHS=${TEACHER_EPOCHS:-100}
EPOCHS=${EPOCHS:-60}
# Of a few pictures fewer clusters than ten may be all there can be.
CLUSTERS=${CLUSTERS:-$([ "$(find -L "$PHOTOS" -type f 2> /dev/null | head -n 100 | wc -l)" -lt 100 ] && echo auto || echo 10)}
SEED=${SEED:-0}
DEVICE=${DEVICE:-auto}
CACHE_DIR=${CACHE_DIR:-cache}
RUNS=${RUNS:-runs/search_$(basename "$PHOTOS")_$(printf %s "$PHOTOS" | cksum | cut -d ' ' -f 1)}
INDEX=${INDEX:-$RUNS/index}
HOST=${HOST:-127.0.0.1}
PORT=${PORT:-8000}
SERVE=${SERVE:-yes}

part() {
    echo "== $1 ($(date +%H:%M:%S))"
}

if [ ! -f "$RUNS/export/card.json" ]; then
    part "teacher $TEACHER, $BITS bits"
    "$PY" train_teacher.py --dataset photos --data-dir "$PHOTOS" --train-images "$TRAIN_IMAGES" --split-seed "$SEED" \
        --backbone "$TEACHER" --bits "$BITS" --views "$VIEWS" --epochs "$TEACHER_EPOCHS" --seed "$SEED" \
        --device "$DEVICE" --cache-dir "$CACHE_DIR" --run-dir "$RUNS/teacher" --resume
    part "student $STUDENT, $METHOD"
    "$PY" distill.py --teacher "$RUNS/teacher" --student "$STUDENT" --method "$METHOD" --clusters "$CLUSTERS" \
        --epochs "$EPOCHS" --seed "$SEED" --run-dir "$RUNS/student" --resume
    part "evaluation"
    "$PY" evaluate.py --run "$RUNS/student" > "$RUNS/evaluation.txt"
    grep -v '^{' "$RUNS/evaluation.txt"
    part "export"
    "$PY" export.py --run "$RUNS/student" --out "$RUNS/export"
fi
part "index"
"$PY" -m search add --index "$INDEX" --student "$RUNS/export" "$PHOTOS"
part "ready: $PY -m search serve --index $INDEX"
[ "$SERVE" = no ] || exec "$PY" -m search serve --index "$INDEX" --host "$HOST" --port "$PORT"
