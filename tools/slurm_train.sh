#!/usr/bin/env bash
# Train on a Slurm cluster.
# Usage: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS are taken from the environment.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/slurm_common.sh"

[ $# -ge 4 ] || die "usage: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]"
PARTITION=$1 JOB_NAME=$2 CONFIG=$3 WORK_DIR=$4
shift 4
submit train.py "$PARTITION" "$JOB_NAME" "$CONFIG" --work-dir "$WORK_DIR" "$@"
