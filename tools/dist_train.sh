#!/usr/bin/env bash
# Train on several GPUs, or with several processes on a machine without one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dist_common.sh"

[ $# -ge 2 ] || usage "dist_train.sh CONFIG GPUS [PRETRAINED] [options of train.py]" "$@"
CONFIG=$1 GPUS=$2
shift 2
need_file config "$CONFIG"
need_number GPUS "$GPUS"
PRETRAINED=()
if [ $# -gt 0 ] && [[ "$1" != -* ]]; then
    need_file PRETRAINED "$1"
    PRETRAINED=(--pretrained "$1")
    shift
fi
launch train.py "$GPUS" "$CONFIG" "${PRETRAINED[@]}" "$@"
