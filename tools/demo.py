"""Try a model on images with its library's inferencer: draw what it finds, and write it as JSON.

By its scope the config says whether these are class scores, boxes and masks, or segments.
"""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from os.path import abspath, commonpath
from pathlib import Path

import cv2
import mmcv
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope

from crossformer_mm.checkpoints.loader import load_model
from crossformer_mm.deploy.evaluation import StandIn
from crossformer_mm.deploy.letterbox import use_letterbox
from crossformer_mm.deploy.runtimes import ExportedModel
from crossformer_mm.engine.cfg_options import add_cfg_options
from crossformer_mm.engine.config import (
    check_device,
    check_file,
    load_config,
)
from crossformer_mm.models.build import build_model
from crossformer_mm.utils.cli import OneLineParser, errors_in_one_line, fail, run, say
from crossformer_mm.utils.errors import one_line
from crossformer_mm.utils.io import atomic_write
from crossformer_mm.visualization.inputs import find_images
from crossformer_mm.visualization.prediction import build_inferencer, predict


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


def load_exported(cfg: Config, file: str) -> tuple[StandIn, Mapping]:
    """Start an exported model, and have the config resize images as it needs; also its classes."""
    exported = ExportedModel(file)
    use_letterbox(cfg, "test_dataloader", exported.shape[2:])
    names = dict(classes=exported.read("classes"), palette=exported.read("palette"))
    return StandIn(exported, build_model(cfg)), dict(meta=names)


def load_inferencer(cfg: Config, args: argparse.Namespace) -> object:
    """Load the checkpoint or the exported model into the library's inferencer."""
    if args.model is not None:
        init_default_scope(cfg.default_scope)
        return build_inferencer(cfg, *load_exported(cfg, args.model))
    model, checkpoint, unused = load_model(cfg, args.checkpoint, check_device(args.device))
    if unused:
        say(f"Checkpoint: {unused}")
    return build_inferencer(cfg, model, checkpoint)


def main(argv: Sequence[str] | None = None) -> None:
    """Predict on every input; what cannot be used is named in one line, and the rest goes on."""
    args = parse_args(argv)
    check_file(args.checkpoint, "--checkpoint")
    check_file(args.model, "--model")
    if not 0 <= args.score_thr <= 1:
        fail(f"--score-thr {args.score_thr}: give a number from 0 to 1")
    out_dir = Path(abspath(args.out_dir))
    found = {given: find_images(abspath(given)) for given in args.inputs}
    for given, files in found.items():
        if not Path(given).is_file():
            files[:] = [file for file in files if out_dir not in file.parents]
    failures = [f"{given}: no image is found there" for given, files in found.items() if not files]
    files = dict.fromkeys(file for files in found.values() for file in files)
    total = len(files) + len(failures)
    cfg = load_config(args.config, args.cfg_options)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # the inferencer's own model has no weights
    try:
        inferencer = load_inferencer(cfg, args)
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
        said = json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace")
        drawn = cv2.imencode(".png", mmcv.rgb2bgr(picture))[1]
        with errors_in_one_line(OSError):
            result.parent.mkdir(parents=True, exist_ok=True)
            for suffix, content in (".json", said), (".png", drawn):
                with atomic_write(Path(f"{result}{suffix}")) as temporary:
                    temporary.write_bytes(content)
        say(f"Wrote {result}.png")
    for failure in failures:
        say(f"cannot use {failure}", file=sys.stderr)
    if failures:
        fail(f"{len(failures)} of {total} inputs failed, see above")


if __name__ == "__main__":
    run(main, "what was written so far stays")
