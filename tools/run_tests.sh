#!/usr/bin/env bash
# Set up what the tests need, once, and run them. Options go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"
exec "$PYTHON" -m pytest "$@"
