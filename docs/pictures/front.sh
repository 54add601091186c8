#!/usr/bin/env bash
# Draw front.png, the picture of the README, with models trained on the toy data:
# bash docs/pictures/front.sh COCO DETECTOR ADE SEGMENTOR, folders of data and checkpoint files
set -euo pipefail
COCO=$1 DETECTOR=$2 ADE=$3 SEGMENTOR=$4
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-python}
MASK_RCNN=configs/detection/mask-rcnn_crossformer-nano_fpn_toy-coco.py
FPN=configs/segmentation/fpn_crossformer-nano_toy-ade.py
IMAGE=$COCO/val2017/000000500002.jpg
SCENE=$ADE/images/validation/ADE_val_00000001.jpg
PARTS=$(mktemp -d)
trap 'rm -rf "$PARTS"' EXIT

"$PYTHON" tools/demo.py "$IMAGE" --config $MASK_RCNN --checkpoint "$DETECTOR" --out-dir "$PARTS/1"
"$PYTHON" tools/demo.py "$SCENE" --config $FPN --checkpoint "$SEGMENTOR" --out-dir "$PARTS/2"
"$PYTHON" tools/visualize.py attention "$IMAGE" --config $MASK_RCNN --checkpoint "$DETECTOR" \
    --stage 2 --block 1 --head 0 1 --token 12 6 --out "$PARTS/3/attention.png"
"$PYTHON" - "$PARTS"/*/*.png <<'PY'
import sys
from PIL import Image

parts = [Image.open(file).convert("RGB") for file in sys.argv[1:]]
height = parts[-1].height
parts = [part.resize((round(part.width * height / part.height), height)) for part in parts]
front = Image.new("RGB", (sum(part.width + 8 for part in parts) - 8, height), "white")
left = 0
for part in parts:
    front.paste(part, (left, 0))
    left += part.width + 8
front.quantize().save("docs/pictures/front.png", optimize=True)
print("Wrote docs/pictures/front.png")
PY
