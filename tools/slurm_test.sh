#!/usr/bin/env bash
# Test on a Slurm cluster.
# Usage: slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS are taken from the environment.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/slurm_common.sh"

[ $# -ge 4 ] || die "usage: slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]"
PARTITION=$1 JOB_NAME=$2 CONFIG=$3 CHECKPOINT=$4
shift 4
[ -f "$CHECKPOINT" ] || die "checkpoint $CHECKPOINT does not exist"
submit test.py "$PARTITION" "$JOB_NAME" "$CONFIG" "$CHECKPOINT" "$@"
