#!/usr/bin/env bash
# Train on several GPUs, or with several processes on a machine without one.
# Usage: dist_train.sh CONFIG GPUS [PRETRAINED] [options of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dist_common.sh"

[ $# -ge 2 ] || die "usage: dist_train.sh CONFIG GPUS [PRETRAINED] [options of train.py]"
CONFIG=$1 GPUS=$2
shift 2
[ -f "$CONFIG" ] || die "config $CONFIG does not exist"
is_number "$GPUS" || die "GPUS must be a number of processes, at least 1, not '$GPUS'"

PRETRAINED=()
if [ $# -gt 0 ] && [[ "$1" != -* ]]; then
    [ -f "$1" ] || [[ "$1" == *://* ]] || die "PRETRAINED $1 does not exist"
    PRETRAINED=(--pretrained "$1")
    shift
fi
launch train.py "$GPUS" "$CONFIG" "${PRETRAINED[@]}" "$@"
