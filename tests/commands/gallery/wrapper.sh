#!/bin/sh
# Usage: sh wrapper.sh BATCH [OPTIONS OF plain.py]
set -eu

cd "$(dirname "$0")"
batch=${1:-64}
[ $# -gt 0 ] && shift

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
echo "$(date): training with batch size $batch"
"${PYTHON:-python}" -u plain.py --batch-size "$batch" --epochs 1 --lr 3e-4 "$@"
echo "$(date): done"
