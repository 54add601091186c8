#!/usr/bin/env bash
# From a fresh machine to a trained detector and pictures of what it sees.
set -euo pipefail
if [ $# -gt 0 ]; then
    echo "usage: bash tools/quickstart.sh, which takes no options"
    [ "$1" = --help ]
    exit
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"

# Threads that spin for long while they wait take the cores from the data worker and from other
# programs; threads that never spin are slow to wake.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}

CONFIG=configs/detection/retinanet_crossformer-nano_fpn_toy-coco.py
DATA=data/toy_coco
WORK=work_dirs/quickstart

if [ ! -e "$DATA/annotations" ]; then
    echo "==> Drawing the toy data set into $DATA"
    "$PYTHON" tools/make_toy_dataset.py coco "$DATA" --train 1000 --val 100
fi
echo "==> Training $CONFIG"
"$PYTHON" tools/train.py "$CONFIG" --work-dir "$WORK" --resume
echo "==> Testing, and drawing truth (left) beside predictions (right)"
"$PYTHON" tools/test.py "$CONFIG" "$(cat "$WORK/last_checkpoint")" \
    --work-dir "$WORK/test" --show-dir "$WORK/pictures"
"$PYTHON" - "$WORK" <<'PY'
import json
import sys
from pathlib import Path

work = Path(sys.argv[1])
newest = max((work / "test").glob("*/*.json"), key=lambda file: file.stat().st_mtime)
metrics = json.loads(newest.read_text())
print(f"\nBox AP {metrics['coco/bbox_mAP']:.3f}, AP50 {metrics['coco/bbox_mAP_50']:.3f}, on images not trained on.")
print(f"Pictures: {work / 'pictures'}")
PY
