#!/usr/bin/env bash
# Test on several GPUs, or with several processes on a machine without one.
# Usage: dist_test.sh CONFIG GPUS CHECKPOINT [options of test.py]
# mmdet's order, CONFIG CHECKPOINT GPUS, is understood too.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dist_common.sh"

[ $# -ge 3 ] || die "usage: dist_test.sh CONFIG GPUS CHECKPOINT [options of test.py]"
CONFIG=$1 GPUS=$2 CHECKPOINT=$3
shift 3
if ! is_number "$GPUS" && is_number "$CHECKPOINT"; then
    SWAPPED=$GPUS GPUS=$CHECKPOINT CHECKPOINT=$SWAPPED
fi
[ -f "$CONFIG" ] || die "config $CONFIG does not exist"
is_number "$GPUS" || die "GPUS must be a number of processes, at least 1, not '$GPUS'"
[ -f "$CHECKPOINT" ] || die "checkpoint $CHECKPOINT does not exist"
launch test.py "$GPUS" "$CONFIG" "$CHECKPOINT" "$@"
