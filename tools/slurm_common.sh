# Sourced by slurm_train.sh and slurm_test.sh.

source "$(dirname "${BASH_SOURCE[0]}")/dist_common.sh"
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
CPUS_PER_TASK=${CPUS_PER_TASK:-5}

submit() {
    local tool=$1 partition=$2 job_name=$3 config=$4
    shift 4
    [ -f "$config" ] || die "config $config does not exist"
    is_number "$GPUS" || die "GPUS must be a number, at least 1, not '$GPUS'"
    is_number "$GPUS_PER_NODE" || die "GPUS_PER_NODE must be a number, at least 1, not '$GPUS_PER_NODE'"
    local per_node=$((GPUS < GPUS_PER_NODE ? GPUS : GPUS_PER_NODE))
    # SRUN_ARGS may hold several options, so it is split into words.
    # shellcheck disable=SC2086
    exec srun -p "$partition" --job-name="$job_name" --gres="gpu:$per_node" --ntasks="$GPUS" \
        --ntasks-per-node="$per_node" --cpus-per-task="$CPUS_PER_TASK" --kill-on-bad-exit=1 \
        ${SRUN_ARGS:-} "${PYTHON:-python}" -u "$TOOLS/$tool" "$config" "$@" --launcher slurm
}
