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
exec "$PYTHON" -m pytest -n 2 --dist loadfile --max-worker-restart 0 "$@"
