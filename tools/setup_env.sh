# Sourced by quickstart.sh and run_tests.sh: leaves $PYTHON, an interpreter that has everything.
# An active environment that has the OpenMMLab stack is used; otherwise .venv is made and filled,
# once. CROSSFORMER_VENV names another place for it. $STACK, if set, names the family of packages:
# onedl (the default) or openmmlab, which gets .venv-openmmlab.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
NEEDED_GB=16
case ${STACK:=} in
    "" | onedl)
        VENV=${CROSSFORMER_VENV:-$ROOT/.venv}
        TORCH=(torch==2.11.0 torchvision==0.26.0 'numpy>=2.1,<2.3')
        MMCV=(onedl-mmcv==2.3.6 onedl-mmengine==0.10.12)
        FAMILY=onedl
        ;;
    openmmlab)
        VENV=${CROSSFORMER_VENV:-$ROOT/.venv-openmmlab}
        TORCH=(torch==2.1.2 torchvision==0.16.2 'numpy<2')
        MMCV=(mmcv==2.1.0 mmengine==0.10.7)
        FAMILY=openmmlab
        ;;
    *)
        echo "error: --stack $STACK: choose onedl or openmmlab" >&2
        exit 1
        ;;
esac

die() {
    echo "error: $*" >&2
    exit 1
}

has_stack() {
    "$1" - "$STACK" >/dev/null 2>&1 <<'PY'
import sys
from importlib.metadata import version

import mmcv.ops, mmdet, mmpretrain, mmseg

if sys.argv[1]:
    version({"onedl": "onedl-mmcv", "openmmlab": "mmcv"}[sys.argv[1]])
PY
}

has_project() {
    (cd / && "$1" - "$ROOT" >/dev/null 2>&1) <<'PY'
import sys
from pathlib import Path

import onnxruntime, onnxscript, pytest, ruff, safetensors, tensorboard, xdist
import crossformer_mm

assert Path(crossformer_mm.__file__).parents[1] == Path(sys.argv[1])
PY
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.11 python3.12 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' \
            >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    die "Python 3.10, 3.11 or 3.12 is needed; found $("${PYTHON:-python3}" --version 2>&1 || true)"
}

check_machine() {
    if ! command -v "${CXX:-c++}" >/dev/null; then
        die "a C++ compiler is needed to build mmcv's operators (on Debian: apt install g++)"
    fi
    if command -v nvidia-smi >/dev/null && ! command -v nvcc >/dev/null && [ -z "${CUDA_HOME:-}" ]; then
        die "nvcc is needed to build mmcv's operators for the GPU: install the CUDA toolkit"
    fi
    local free
    free=$(df -Pk "$(dirname "$VENV")" | awk 'NR == 2 {print int($4 / 1048576)}')
    if [ "$free" -lt "$NEEDED_GB" ]; then
        die "$NEEDED_GB GB of free disk are needed in $(dirname "$VENV"), which has $free GB"
    fi
}

# Run a command with its output in a log, and show every 20 seconds how far it is.
step() {
    local title=$1 log=$VENV/install.log seconds=0 pid
    shift
    echo "==> $title"
    "$@" >"$log" 2>&1 &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        if [ $((seconds % 20)) = 0 ]; then
            # ninja counts what it has compiled as [12/170]
            echo "    ${seconds}s $(grep -oE '^ *\[[0-9]+/[0-9]+\]|^ *(Collecting|Downloading|Installing) .*' "$log" | tail -n 1 | cut -c 1-80)"
        fi
    done
    wait "$pid" || explain_failure "$title" "$log"
}

explain_failure() {
    local title=$1 log=$2
    if grep -qiE 'no space left|disk quota' "$log"; then
        die "$title: the disk is full (log: $log)"
    elif grep -qiE 'connection|name resolution|timed out|retrying|proxyerror|from versions: none' "$log"; then
        die "$title: the package index cannot be reached; is there a network? (log: $log)"
    fi
    die "$title failed: $(grep -iE 'error' "$log" | tail -n 1 | cut -c 1-200) (log: $log)"
}

install_stack() {
    local base
    base=$(find_python) || exit 1
    check_machine
    "$base" -m venv "$VENV" || die "no virtual environment could be made in $VENV"
    PYTHON=$VENV/bin/python
    local pip=("$PYTHON" -m pip install --disable-pip-version-check)
    # Newer setuptools have no pkg_resources, which some of the libraries import.
    step "1/3 PyTorch (about 5 GB)" "${pip[@]}" "${TORCH[@]}" \
        'setuptools<81' wheel ninja psutil
    step "2/3 mmcv (compiles its operators, about 10 minutes on 2 cores, once)" \
        "${pip[@]}" -v --no-build-isolation "${MMCV[@]}"
    step "3/3 mmdet, mmseg, mmpretrain" \
        "${pip[@]}" --no-build-isolation -e "$ROOT[$FAMILY,dev]"
}

choose_environment() {
    local active
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        active=$(command -v python || true)
        if [ -n "$active" ] && has_stack "$active"; then
            PYTHON=$active
            return
        fi
    fi
    if [ -x "$VENV/bin/python" ] && has_stack "$VENV/bin/python"; then
        PYTHON=$VENV/bin/python
        return
    fi
    install_stack
}

choose_environment
if ! has_project "$PYTHON"; then
    "$PYTHON" -m pip install -q --disable-pip-version-check --no-build-isolation -e "$ROOT[dev]" ||
        die "crossformer_mm could not be installed into $PYTHON"
fi
echo "==> Environment: $PYTHON"
