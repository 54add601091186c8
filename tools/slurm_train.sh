#!/usr/bin/env bash
# Train on a Slurm cluster.
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS are taken from the environment.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dist_common.sh"

[ $# -ge 4 ] || usage "slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]" "$@"
submit train.py "$1" "$2" "$3" --work-dir "${@:4}"
