# Sourced by the scripts dist_*.sh and slurm_*.sh.
#
# One machine: torchrun finds a free port by itself. Several: start the script on each with
# NNODES (how many), NODE_RANK (0, 1, ...), MASTER_ADDR (address of machine 0) and PORT.
#
# With MAX_RESTARTS, when a process fails, all are started again, at most so many times. A machine
# other than 0 may leave and come back. In a batch job of Slurm, slurm_train.sh queues the job again
# when it is told to end by SIGTERM, or USR1 (sbatch --signal=B:USR1@120). Both need --resume.

TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

die() {
    echo "error: $*" >&2
    exit 1
}

# usage TEXT ARGUMENTS...: print it, which is no error if --help is among the arguments.
usage() {
    [[ " ${*:2} " != *" --help "* ]] || { echo "usage: $1" && exit 0; }
    die "usage: $1"
}

need_file() {
    [[ -f "$2" || "$1" != config && "$2" == *://* ]] || die "$1 $2 does not exist"
}

# need_number NAME VALUE [LEAST [MOST]]: die if it is no whole number in this range.
need_number() {
    local least=${3:-1} most=${4:-1024}
    [[ "$2" =~ ^(0|[1-9][0-9]{0,8})$ ]] && [ "$2" -ge "$least" ] && [ "$2" -le "$most" ] ||
        die "$1 must be a number from $least to $most, not '$2'"
}

# need_host NAME VALUE: die if an address leads nowhere, which torchrun would try for minutes.
need_host() {
    local status=0
    command -v getent >/dev/null || return 0
    timeout 20 getent ahosts "$2" >/dev/null || status=$?
    [ "$status" = 0 ] || die "$1 $2 is no address of a machine"
}

resumes() {
    [[ " $* " == *" --resume "* ]]
}

launch() {
    local tool=$1 gpus=$2 restarts=${MAX_RESTARTS:-0}
    shift 2
    [ "$tool" = train.py ] || restarts=0
    need_number MAX_RESTARTS "$restarts" 0 1000000
    need_number NNODES "${NNODES:-1}"
    need_number NODE_RANK "${NODE_RANK:-0}" 0 $((${NNODES:-1} - 1))
    need_number PORT "${PORT:-29500}" 1 65535
    [ -z "${MASTER_ADDR:-}" ] || need_host MASTER_ADDR "$MASTER_ADDR"
    [ "$restarts" = 0 ] || resumes "$@" || die "MAX_RESTARTS needs --resume, to go on from a checkpoint"
    local rendezvous=(--standalone)
    if [ "${NNODES:-1}" != 1 ] || [ -n "${PORT:-}" ]; then
        rendezvous=(
            --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}"
            --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}"
        )
        # For restarts, one that lets machines come and go.
        [ "$restarts" = 0 ] || rendezvous=(
            --nnodes="${NNODES:-1}" --rdzv-backend=c10d
            --rdzv-endpoint="${MASTER_ADDR:-127.0.0.1}:${PORT:-29500}"
        )
    fi
    if [ "$restarts" != 0 ]; then
        rendezvous+=(--max-restarts="$restarts")
        # The launcher's own store would lead restarted processes to addresses of ended ones.
        export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    fi
    exec "${PYTHON:-python}" "$TOOLS/dist_run.py" "${rendezvous[@]}" \
        --nproc_per_node="$gpus" "$TOOLS/$tool" "$@" --launcher pytorch
}

submit() {
    local tool=$1 partition=$2 job_name=$3 gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
    shift 3
    need_file config "$1"
    need_number GPUS "$gpus" 1 100000
    need_number GPUS_PER_NODE "$per_node"
    per_node=$((gpus < per_node ? gpus : per_node))
    # SRUN_ARGS may hold several options, so it is split into words.
    # shellcheck disable=SC2206
    local command=(
        srun -p "$partition" --job-name="$job_name" --gres="gpu:$per_node" --ntasks="$gpus"
        --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1
        ${SRUN_ARGS:-} "${PYTHON:-python}" -u "$TOOLS/$tool" "$@" --launcher slurm
    )
    if [ -z "${SLURM_JOB_ID:-}" ] || ! resumes "$@"; then
        exec "${command[@]}"
    fi
    local status signalled=1
    "${command[@]}" &
    # srun passes USR1 on to the processes; SIGTERM would have it kill them.
    trap 'signalled=1; kill -USR1 $!' USR1 TERM
    while [ "$signalled" = 1 ]; do
        status=0 signalled=0
        wait $! || status=$?
    done
    if [ "$status" = 75 ]; then
        scontrol requeue "$SLURM_JOB_ID" || die "the job cannot be queued again: submit it once more"
    fi
    exit "$status"
}
