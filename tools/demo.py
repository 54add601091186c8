"""Try a model on images with its library's inferencer: draw what it finds, and write it as JSON.

By its scope the config says whether these are class scores, boxes and masks, or segments.
"""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from glob import glob
from os.path import abspath, commonpath
from pathlib import Path

import cv2
import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import VISUALIZERS, init_default_scope
from mmengine.utils import get_object_from_string
from PIL import Image

from crossformer_mm.checkpoints.loader import load_model
from crossformer_mm.deploy.evaluation import StandIn
from crossformer_mm.deploy.letterbox import use_letterbox
from crossformer_mm.deploy.runtimes import ExportedModel
from crossformer_mm.engine.cfg_options import add_cfg_options
from crossformer_mm.engine.config import (
    check_device,
    check_file,
    find_classes,
    load_config,
)
from crossformer_mm.models.build import build_model
from crossformer_mm.utils.cli import OneLineParser, errors_in_one_line, fail, run
from crossformer_mm.utils.errors import one_line
from crossformer_mm.utils.io import atomic_write

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
INFERENCERS = {
    "mmpretrain": "mmpretrain.apis.ImageClassificationInferencer",
    "mmdet": "mmdet.apis.DetInferencer",
    "mmseg": "mmseg.apis.MMSegInferencer",
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__)
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="image, folder, also below it, or quoted glob")
    add("--config", required=True, help="config file")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--checkpoint", metavar="CKPT", help="checkpoint file")
    weights.add_argument("--model", metavar="FILE", help="file of tools/export.py instead")
    add("--out-dir", required=True, metavar="DIR", help="folder for pictures and JSON files")
    add("--device", default=get_device(), help="cpu, cuda, cuda:1, ...; default %(default)s")
    threshold = "draw boxes from this score on, default %(default)s; JSON files have all"
    add("--score-thr", type=float, default=0.3, metavar="S", help=threshold)
    add_cfg_options(parser)
    return parser.parse_args(argv)


def find_files(given: str, out_dir: Path) -> list[Path]:
    """A file itself, or the images of a folder or glob that are not in ``out_dir``."""
    path = Path(given)
    if path.is_file():
        return [path]
    if path.is_dir():
        images = [file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES]
    else:
        matches = glob(given, recursive=True)
        images = [file for match in matches for file in find_files(match, out_dir)]
    return sorted(image for image in images if out_dir not in image.parents)


def load_exported(cfg: Config, file: str) -> tuple[StandIn, Mapping]:
    """Start an exported model, and have the config resize images as it needs; also its classes."""
    exported = ExportedModel(file)
    use_letterbox(cfg, "test_dataloader", exported.shape[2:])
    names = dict(classes=exported.read("classes"), palette=exported.read("palette"))
    return StandIn(exported, build_model(cfg)), dict(meta=names)


def build_inferencer(cfg: Config, args: argparse.Namespace) -> object:
    """Build the library's inferencer, and put the model with its weights into it."""
    init_default_scope(cfg.default_scope)
    if args.model is not None:
        model, checkpoint = load_exported(cfg, args.model)
    else:
        device = check_device(args.device)
        model, checkpoint, unused = load_model(cfg, args.checkpoint, device)
        if unused:
            print(f"Checkpoint: {unused}")
    cfg.visualizer.vis_backends = None
    kind = get_object_from_string(INFERENCERS[cfg.default_scope])
    # With a palette of its own, mmdet's does not build the data set.
    palette = dict(palette="random") if cfg.default_scope == "mmdet" else {}
    inferencer = kind(cfg, None, device="cpu", **palette)
    inferencer.model = model
    inferencer.visualizer = inferencer.visualizer or VISUALIZERS.build(cfg.visualizer)
    inferencer.visualizer.dataset_meta = find_classes(cfg, checkpoint, model)
    return inferencer


def predict(inferencer: object, file: Path, color_type: str, score_thr: float) -> tuple:
    """Predict on a file: the picture (H, W, 3), blue first, and what the JSON file says."""
    with Image.open(file) as opened:  # OpenCV fills the missing end of a file with grey
        opened.draft("L", (1, 1))  # where the format can, the smallest is enough to see the end
        opened.load()
    image = mmcv.imread(file, color_type)
    rgb = np.dstack([image] * 3)[..., 2::-1].clip(0, 255).astype(np.uint8)  # of 1, 3 or more
    (batch,) = inferencer.preprocess([image])
    (sample,) = inferencer.forward(batch if isinstance(batch, dict) else batch[1])
    visualizer, names = inferencer.visualizer, inferencer.visualizer.dataset_meta["classes"]
    if "pred_instances" in sample:
        record, scores = inferencer.pred2dict(sample), sample.pred_instances.scores
        record.update(task="detection", names=[names[label] for label in record["labels"]])
        visualizer.add_datasample("", rgb, sample, draw_gt=False, pred_score_thr=score_thr)
    elif "pred_score" in sample:
        scores, (short, long) = sample.pred_score, sorted(image.shape[:2])
        best = scores.argsort(descending=True)[:5].tolist()
        top = [dict(label=label, name=names[label], score=scores[label].item()) for label in best]
        record = dict(task="classification", top=top, scores=scores.tolist())
        size = max(short, min(224, 2000 * short // long))  # text needs room
        visualizer.visualize_cls(rgb, sample, draw_gt=False, resize=size)
    else:
        scores, labels = sample.seg_logits.data, sample.pred_sem_seg.data
        shares = {i: (labels == i).float().mean().item() for i in labels.unique().tolist()}
        segments = [dict(label=i, name=names[i], share=share) for i, share in shares.items()]
        record = dict(task="segmentation", segments=segments)
        visualizer.add_datasample("", rgb, sample, draw_gt=False)
    if not scores.isfinite().all():
        raise ValueError("the model predicts NaN or infinite scores")
    record.update(input=str(file), width=image.shape[1], height=image.shape[0])
    return mmcv.rgb2bgr(visualizer.get_image()), record


def main(argv: Sequence[str] | None = None) -> None:
    """Predict on every input; what cannot be used is named in one line, and the rest goes on."""
    args = parse_args(argv)
    check_file(args.checkpoint, "--checkpoint")
    check_file(args.model, "--model")
    if not 0 <= args.score_thr <= 1:
        fail(f"--score-thr {args.score_thr}: give a number from 0 to 1")
    out_dir = Path(abspath(args.out_dir))
    found = {given: find_files(abspath(given), out_dir) for given in args.inputs}
    failures = [f"{given}: no image is found there" for given, files in found.items() if not files]
    files = dict.fromkeys(file for files in found.values() for file in files)
    total = len(files) + len(failures)
    cfg = load_config(args.config, args.cfg_options)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # the inferencer's own model has no weights
    try:
        inferencer = build_inferencer(cfg, args)
        color_type = cfg.test_dataloader.dataset.pipeline[0].get("color_type", "color")
    except Exception as error:  # models raise anything at arguments that they do not take
        fail(f"no inferencer can be built for --config {args.config}: {one_line(str(error))}")
    shared = commonpath([file.parent for file in files] or [out_dir])
    results = {file: out_dir / file.relative_to(shared) for file in files}
    if any(Path(f"{result}.png") in files for result in results.values()):
        fail(f"--out-dir {args.out_dir}: a picture would replace an input")
    for file, result in results.items():
        try:
            picture, record = predict(inferencer, file, color_type, args.score_thr)
        except Exception as error:
            failures.append(f"{file}: {one_line(str(error)) or type(error).__name__}")
            continue
        said = json.dumps(record, ensure_ascii=False).encode()
        with errors_in_one_line(OSError):
            result.parent.mkdir(parents=True, exist_ok=True)
            for suffix, content in (".json", said), (".png", cv2.imencode(".png", picture)[1]):
                with atomic_write(Path(f"{result}{suffix}")) as temporary:
                    temporary.write_bytes(content)
        print(f"Wrote {result}.png")
    for failure in failures:
        print(f"cannot use {failure}", file=sys.stderr)
    if failures:
        fail(f"{len(failures)} of {total} inputs failed, see above")


if __name__ == "__main__":
    run(main, "what was written so far stays")
