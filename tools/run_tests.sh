#!/usr/bin/env bash
# Set up what the tests need, once, and run them. Options go to pytest, but for one:
# --stack onedl (the default), openmmlab or newest, the packages to test with.
set -euo pipefail
STACK=
if [ "${1:-}" = --stack ]; then
    STACK=${2:?error: --stack needs a value: onedl, openmmlab or newest}
    shift 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"
# Two processes with a thread each take less time than one with two.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# A lost process ends the run: pytest-xdist would wait for ever for what it has put back.
run() {
    "$PYTHON" -m pytest -n 2 --dist loadfile --max-worker-restart 0 "$@"
}

LOG=$(mktemp)
trap 'rm -f "$LOG"' EXIT
STATUS=0
run "$@" 2>&1 | tee "$LOG" || STATUS=$?
# Late in a long run a process is sometimes lost by a crash in native code, whose cause is not known.
if [ "$STATUS" != 0 ] && grep -q "worker 'gw[0-9]*' crashed" "$LOG"; then
    echo "==> A test process crashed: all tests once more, in new processes"
    STATUS=0
    run "$@" || STATUS=$?
fi
exit "$STATUS"
