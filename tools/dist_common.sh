# Sourced by dist_train.sh and dist_test.sh.
#
# One machine: torchrun finds a free port by itself. Several: start the script on each with
# NNODES (how many), NODE_RANK (0, 1, ...), MASTER_ADDR (address of machine 0) and PORT.

TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NNODES=${NNODES:-1}

die() {
    echo "error: $*" >&2
    exit 1
}

is_number() {
    [[ "$1" =~ ^[1-9][0-9]*$ ]]
}

launch() {
    local tool=$1 gpus=$2
    shift 2
    local rendezvous=(--standalone)
    if [ "$NNODES" != 1 ] || [ -n "${PORT:-}" ]; then
        rendezvous=(
            --nnodes="$NNODES" --node_rank="${NODE_RANK:-0}"
            --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}"
        )
    fi
    exec "${PYTHON:-python}" "$TOOLS/dist_run.py" "${rendezvous[@]}" \
        --nproc_per_node="$gpus" "$TOOLS/$tool" "$@" --launcher pytorch
}
