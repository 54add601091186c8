# Sourced by the scripts dist_*.sh and slurm_*.sh.
#
# One machine: torchrun finds a free port by itself. Several: start the script on each with
# NNODES (how many), NODE_RANK (0, 1, ...), MASTER_ADDR (address of machine 0) and PORT.

TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

die() {
    echo "error: $*" >&2
    exit 1
}

need_file() {
    [[ -f "$2" || "$1" != config && "$2" == *://* ]] || die "$1 $2 does not exist"
}

need_number() {
    [[ "$2" =~ ^[1-9][0-9]*$ ]] || die "$1 must be a number, at least 1, not '$2'"
}

launch() {
    local tool=$1 gpus=$2
    shift 2
    local rendezvous=(--standalone)
    if [ "${NNODES:-1}" != 1 ] || [ -n "${PORT:-}" ]; then
        rendezvous=(
            --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}"
            --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}"
        )
    fi
    exec "${PYTHON:-python}" "$TOOLS/dist_run.py" "${rendezvous[@]}" \
        --nproc_per_node="$gpus" "$TOOLS/$tool" "$@" --launcher pytorch
}

submit() {
    local tool=$1 partition=$2 job_name=$3 gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
    shift 3
    need_file config "$1"
    need_number GPUS "$gpus"
    need_number GPUS_PER_NODE "$per_node"
    per_node=$((gpus < per_node ? gpus : per_node))
    # SRUN_ARGS may hold several options, so it is split into words.
    # shellcheck disable=SC2086
    exec srun -p "$partition" --job-name="$job_name" --gres="gpu:$per_node" --ntasks="$gpus" \
        --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
        ${SRUN_ARGS:-} "${PYTHON:-python}" -u "$TOOLS/$tool" "$@" --launcher slurm
}
