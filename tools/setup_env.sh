# Sourced by quickstart.sh and run_tests.sh: leaves $PYTHON, an interpreter that has everything.
# An active environment that has the OpenMMLab stack is used; otherwise .venv is made and filled,
# once. CROSSFORMER_VENV names another place for it. $STACK, if set, names an entry of
# stack_versions.py: onedl (the default), openmmlab or newest; the last two get a .venv of their own.

die() {
    echo "error: $*" >&2
    exit 1
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
VERSIONS="3.11 3.12 3.10"
case ${STACK:=} in
    "" | onedl) ;;
    newest) VENV+=-newest ;;
    openmmlab)
        VENV+=-openmmlab
        VERSIONS="3.11 3.10" # torchvision 0.16.2 has no wheel for 3.12
        ;;
    *) die "--stack $STACK: choose onedl, openmmlab or newest" ;;
esac
VENV=${CROSSFORMER_VENV:-$VENV}

has_stack() {
    "$1" -c '
import sys
from importlib.metadata import version
import mmcv.ops, mmdet, mmpretrain, mmseg
if sys.argv[1]:
    version("mmcv" if sys.argv[1] == "openmmlab" else "onedl-mmcv")
' "$STACK" >/dev/null 2>&1
}

has_project() {
    (cd / && "$1" -c '
import sys
import hypothesis, ipykernel, mypy, nbclient, onnxruntime, onnxscript, playwright, pytest
import pytorch_grad_cam, ruff, safetensors, tensorboard, xdist
from importlib.metadata import version
import crossformer_mm
version("gradio")  # which takes seconds to import
assert crossformer_mm.__path__ == sys.argv[1:]
' "$ROOT/crossformer_mm") >/dev/null 2>&1
}

find_python() {
    local version candidate
    for candidate in "${PYTHON:-python3}" $(printf 'python%s ' $VERSIONS); do
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if [[ " $VERSIONS " == *" $version "* ]]; then
            echo "$candidate"
            return
        fi
    done
    die "Python ${VERSIONS// / or } is needed for ${STACK:-onedl};" \
        "found $("${PYTHON:-python3}" --version 2>&1 || true). PYTHON names another interpreter"
}

if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && has_stack python; then
    PYTHON=$(command -v python)
else
    if [ -e "$VENV/.unfinished" ] || ! has_stack "$VENV/bin/python"; then
        BASE=$(find_python) || exit 1
        "$BASE" "$ROOT/tools/install_stack.py" "${STACK:-onedl}" "$VENV" || exit 1
    fi
    PYTHON=$VENV/bin/python
fi
if ! has_project "$PYTHON"; then
    "$PYTHON" -m pip install -q --disable-pip-version-check --no-build-isolation -e "$ROOT[dev]" ||
        die "crossformer_mm could not be installed into $PYTHON"
fi
echo "==> Environment: $PYTHON"
