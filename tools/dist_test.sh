#!/usr/bin/env bash
# Test on several GPUs, or with several processes on a machine without one.
# mmdet's order, CONFIG CHECKPOINT GPUS, is understood too.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dist_common.sh"

[ $# -ge 3 ] || usage "dist_test.sh CONFIG GPUS CHECKPOINT [options of test.py]" "$@"
CONFIG=$1 GPUS=$2 CHECKPOINT=$3
[[ ! "$3" =~ ^[1-9][0-9]*$ ]] || GPUS=$3 CHECKPOINT=$2
shift 3
need_file config "$CONFIG"
need_number GPUS "$GPUS"
need_file checkpoint "$CHECKPOINT"
launch test.py "$GPUS" "$CONFIG" "$CHECKPOINT" "$@"
