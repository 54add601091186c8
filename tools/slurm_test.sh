#!/usr/bin/env bash
# Test on a Slurm cluster.
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS are taken from the environment.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dist_common.sh"

[ $# -ge 4 ] || usage "slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]" "$@"
need_file checkpoint "$4"
submit test.py "$@"
