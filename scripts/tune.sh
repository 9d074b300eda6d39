#!/bin/sh
# Every method's --kd-weight, five values each, around where its term is as large as the contrastive one; KL's
# temperature too. Ends with each method's best by validation queries; confirm it on other seeds.
#   DATASET=cifar10 sh scripts/tune.sh
set -eu
export DATASET="${DATASET:-digits}" BITS="${BITS:-64}" SEEDS="${SEEDS:-0 1 2}" VIEWS="${VIEWS:-4}"
export NAME="${NAME:-${DATASET}_tuning}" FLAGS="${FLAGS:---size 128}"
export TEACHER_EPOCHS="${TEACHER_EPOCHS:-60}" EPOCHS="${EPOCHS:-30}"
export STUDENT_FLAGS="${STUDENT_FLAGS:-} --kd-temperature 4"  # of KL, where no other is named

set -- none
for weight in 0.1 0.3 1 3 10; do
    set -- "$@" "brcd --kd-weight $weight" "brcd --no-mask --kd-weight $weight"
    set -- "$@" "rkd --kd-weight $weight" "rkd --both-views --kd-weight $weight"
    set -- "$@" "kl --kd-weight $weight" "kl --both-views --kd-weight $weight"
    set -- "$@" "kl --kd-weight $weight --kd-temperature 1" "kl --kd-weight $weight --kd-temperature 2"
    set -- "$@" "bce --kd-weight $weight"
done
for weight in 0.3 1 3 10 30; do set -- "$@" "mse --kd-weight $weight" "cosine --kd-weight $weight"; done
for weight in 0.01 0.03 0.1 0.3 1; do
    set -- "$@" "crd --kd-weight $weight" "crcd --kd-weight $weight" "packd --kd-weight $weight"
done
for weight in 10 30 100 300 1000; do set -- "$@" "sskd --kd-weight $weight"; done
for weight in 30 100 300 1000 3000; do set -- "$@" "sp --kd-weight $weight"; done
for weight in 300 1000 3000 10000 30000; do set -- "$@" "pkt --kd-weight $weight"; done

sh "$(dirname "$0")/compare.sh" "$@"
. "$(dirname "$0")/env.sh"
"$PY" -m scripts.tuned "results/$NAME"
