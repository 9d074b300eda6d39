#!/bin/sh
# Every published table by its command, into results/NAME (the quickstart's into runs/). With --check: the first seed of
# two of its cells at its longest codes, compared with the published rows: same bits on the same kind of machine, else
# mAP within 0.002.
#   sh scripts/reproduce.sh cifar10
#   CACHE_DIR=/big/cache sh scripts/reproduce.sh cifar10 --check
set -eu
. "$(dirname "$0")/env.sh"
export PYTHON="$PY"

TABLES="quickstart digits cifar10 cifar10_auto cifar10_validations cifar10_ablations cifar10_100epochs"
TABLES="$TABLES cifar10_112 cifar10_112_confirmed cifar10_linear mirflickr"
TABLES="$TABLES mirflickr_methods mirflickr_bihalf mirflickr_greedyhash mirflickr_itq"
TABLES="$TABLES mirflickr_lite2_lite1 mirflickr_lite1_lite0 mirflickr_lite2_lite2 mirflickr_lengths mirflickr_views"
TABLES="$TABLES mirflickr_fresh tinyimagenet100"
TABLES="$TABLES cifar10_hardness mirflickr_hardness tinyimagenet100_hardness cifar10_tuning mirflickr_tuning"
TABLES="$TABLES cifar10_tuned mirflickr_tuned tinyimagenet100_tuned fashionmnist_tuned"
TABLES="$TABLES cifar10_unlabelled mirflickr_unlabelled"
TABLE=${1:-}
CHECK=${2:-}
CELLS="none brcd"                   # what --check repeats; if empty the first cell
ALL="none rkd pkt sp kl crd sskd crcd packd brcd"
BEFORE="--kd-weight 1 --kd-temperature 4"  # before the tuning

case $TABLE in
    *_masks | *_masks_confirmed | cifar10_112_beyond)
        echo "error: $TABLE has mask rules or sums of methods, which did not pay and are no longer in the code;" \
            "their last commit is 2fae43b: git checkout 2fae43b, then run this again" >&2
        exit 1
        ;;
esac
case " $TABLES " in
    *" $TABLE "*) ;;
    *)
        echo "error: '$TABLE' is no table; there are: $TABLES" >&2
        exit 1
        ;;
esac

export SEEDS="0 1 2" VIEWS=8 TEACHER_EPOCHS=200 EPOCHS=30 BITS=64 STUDENT_FLAGS="$BEFORE"
case $TABLE in
    *_tuning | *_tuned | *_unlabelled)
        export DATASET="${TABLE%_*}" NAME="$TABLE" FLAGS="--size 128" VIEWS=4 TEACHER_EPOCHS=60 STUDENT_FLAGS=
        case $DATASET in
            tinyimagenet100 | fashionmnist) export DATA_DIR="${DATA_DIR:-data/$DATASET}" DATASET=folder ;;
        esac
        ;;
    quickstart) export NAME=quickstart_digits VIEWS=6 TEACHER_EPOCHS=100 EPOCHS=100 ;;
    digits) export NAME=compare_digits DATASET=digits SEEDS=0 BITS="16 32 64" VIEWS=6 TEACHER_EPOCHS=100 EPOCHS=60 ;;
    cifar10_auto | cifar10_validations | cifar10_hardness | cifar10_linear) export DATASET=cifar10 NAME="$TABLE" ;;
    cifar10*) export DATASET=cifar10 NAME="cifar10_lite2_lite0${TABLE#cifar10}" ;;
    mirflickr) export DATASET=mirflickr NAME=mirflickr_lite2_lite0 VIEWS=4 ;;
    # Pictures of 64 pixels, seen at 128.
    tinyimagenet100*)
        export DATASET=folder NAME="$TABLE" DATA_DIR=${DATA_DIR:-data/tinyimagenet100}
        export FLAGS="--size 128 --precision bfloat16" SEEDS="0 1 2 3 4" VIEWS=4 TEACHER_EPOCHS=40 EPOCHS=20
        ;;
    mirflickr_*)
        export DATASET=mirflickr NAME="$TABLE" FLAGS="--size 128 --precision bfloat16" VIEWS=4 TEACHER_EPOCHS=60
        ;;
esac
case $TABLE in
    *_tuning) CELLS="" && set -- "brcd --kd-weight 3" ;;
    *_tuned)
        export SEEDS="3 4 5 6 7 8 9 10" REDRAW=yes PRIMARY="sshp:kl sshp:rkd ashp:kl ashp:mse"
        set -- none rkd kl bce mse cosine brcd "brcd --no-mask --kd-weight 3" "brcd --no-mask --no-cluster --kd-weight 3"
        ;;
    *_unlabelled)
        export SEEDS="3 4 5 6 7 8 9 10" REDRAW=yes FLAGS="$FLAGS --select-by features"
        set -- none brcd "brcd --clusters auto"
        ;;
    digits) set -- $ALL ;;
    cifar10) export BITS="16 32 64" SEEDS="0 1 2 3 4" && set -- $ALL "brcd --no-mask" ;;
    cifar10_auto) export BITS=16 SEEDS="0 1 2 3 4" && CELLS="" && set -- brcd "brcd --clusters auto" ;;
    cifar10_validations)
        export STUDENT_FLAGS="$BEFORE --validate-every 2 --patience 15" && set -- none kl brcd "brcd --no-mask"
        ;;
    cifar10_112) export STUDENT_FLAGS="$BEFORE --student-size 112" && set -- $ALL "brcd --no-mask" ;;
    cifar10_112_confirmed)
        CELLS="" && export AGAINST="brcd --no-mask"
        export STUDENT_FLAGS="$BEFORE --student-size 112" SEEDS="3 4 5 6 7"
        set -- "brcd --no-mask" "brcd --no-mask --hardness 2"
        ;;
    cifar10_ablations)
        CELLS=""
        set -- brcd "brcd --no-mask" "brcd --margin 0.3" "brcd --margin 0.7" "brcd --alpha 0.5" "brcd --clusters 5" \
            "brcd --clusters 20" "brcd --no-cluster" "brcd --no-offset" "brcd --no-false-negatives" \
            "brcd --no-individual" "brcd --no-structural" "brcd --views 4"
        ;;
    cifar10_linear)
        export BITS="16 32 64" VIEWS=4 TEACHER_EPOCHS=60 FLAGS="--size 128" STUDENT_FLAGS="$BEFORE --head linear"
        set -- none rkd kl bce cosine brcd "brcd --no-mask"
        ;;
    cifar10_100epochs)
        export EPOCHS=100
        set -- none kl brcd "brcd --no-mask" "brcd --bn recalibrate" "brcd --variant released"
        ;;
    tinyimagenet100)
        export NAME=tinyimagenet100_lite2_lite0
        set -- $ALL "brcd --no-mask" "brcd --clusters 20" "brcd --clusters 50" "brcd --clusters 100" \
            "brcd --clusters 200" "brcd --clusters auto" "brcd --clusters 50 --no-mask"
        ;;
    *_hardness)
        export SEEDS="3 4 5 6 7" AGAINST="brcd --no-mask" && CELLS=""
        set -- "brcd --no-mask" "brcd --no-mask --hardness 2"
        ;;
    mirflickr) set -- none pkt rkd kl brcd "brcd --no-mask" ;;
    mirflickr_methods) export SEEDS="0 1 2 3 4" && set -- $ALL "brcd --no-mask" "brcd --clusters auto" ;;
    # The teacher's objective, and the student's own, which cannot be ITQ.
    mirflickr_bihalf | mirflickr_greedyhash)
        export TEACHER_HASHING="${TABLE#*_}" STUDENT_FLAGS="$BEFORE --hashing ${TABLE#*_}"
        set -- none rkd kl brcd "brcd --no-mask"
        ;;
    mirflickr_itq) export TEACHER_HASHING=itq && set -- none rkd kl brcd "brcd --no-mask" ;;
    mirflickr_lite*)
        export STUDENT="efficientnet_${TABLE##*_}" && TEACHER=${TABLE#*_}
        export TEACHER="efficientnet_${TEACHER%_*}" && set -- none rkd kl brcd "brcd --no-mask"
        ;;
    mirflickr_views)
        CELLS="" && export AGAINST=brcd  # of 4 views; others have the name "brcd" too
        set -- brcd "brcd --views 8" "brcd --views 16" "brcd --views 32" none "none --views 32" kl "kl --views 32"
        ;;
    mirflickr_fresh) export SEEDS=0 && CELLS="" && set -- brcd "brcd --views 32" "brcd --views 0" ;;
    mirflickr_lengths)
        export BITS="8 16 32 64 128 256"
        set -- none kl brcd "brcd --margin 0.1" "brcd --margin 0.3" "brcd --margin 0.7" "brcd --no-mask"
        ;;
esac

case $CHECK in
    "") ;;
    --check)
        PUBLISHED=results/$NAME
        export SEEDS="${SEEDS%% *}" BITS="${BITS##* }" NAME="check_$NAME" RUNS="runs/check_$NAME" AGAINST= PRIMARY=
        rm -rf "$RUNS" "results/$NAME"  # else nothing would be repeated
        [ -z "$CELLS" ] && set -- "$1" || set -- $CELLS
        ;;
    *)
        echo "error: '$CHECK' is not known; there is: --check" >&2
        exit 1
        ;;
esac
if [ "$TABLE" = quickstart ]; then
    sh scripts/quickstart.sh
    AGAIN=${RUNS:-}
elif [ -z "$CHECK" ] && [ "$TABLE" != "${TABLE%_tuning}" ]; then
    sh scripts/tune.sh
else
    sh scripts/compare.sh "$@"
    AGAIN=results/$NAME
fi
[ -z "$CHECK" ] || "$PY" -m scripts.check_rows "$AGAIN" "$PUBLISHED"
