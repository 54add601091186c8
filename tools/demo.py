"""Try a model: predict on images and videos, draw what it finds, and write it as JSON.

By its scope the config says whether these are class scores, boxes and masks, or segments.
"""

if __name__ == "__main__":
    from while_loading import end_if_interrupted

    end_if_interrupted()

import argparse
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.progress import Progress

from crossformer_mm.demo.class_names import find_dataset_meta
from crossformer_mm.demo.drawing import Painter
from crossformer_mm.demo.inputs import find_files
from crossformer_mm.demo.naming import place_results
from crossformer_mm.demo.prediction import Predictor
from crossformer_mm.demo.run import Demo
from crossformer_mm.interruption import interruption_in_one_line
from crossformer_mm.launch import (
    SCOPES,
    add_cfg_options,
    check_device,
    check_file,
    checkpoint_errors_in_one_line,
    fail,
    load_config,
)
from crossformer_mm.trained_model import load_model


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image, video, folder (its images and those below) or quoted glob",
    )
    parser.add_argument("--config", required=True, help="config file")
    parser.add_argument("--checkpoint", required=True, metavar="CKPT", help="checkpoint file")
    parser.add_argument(
        "--out-dir", required=True, metavar="OUT", help="folder for pictures and JSON files"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; if not given, a GPU if there is")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at a time")
    parser.add_argument(
        "--score-thr",
        type=float,
        metavar="S",
        help="draw boxes and masks from this score on; if not given, the one of the config's "
        "visualization hook, or 0.3. JSON files have all",
    )
    add_cfg_options(parser)
    return parser.parse_args()


def check_arguments(args: argparse.Namespace) -> None:
    """Fail on values that cannot be used."""
    check_file(args.checkpoint, "--checkpoint")
    if args.batch_size < 1:
        fail(f"--batch-size {args.batch_size}: give 1 or more")
    if Path(args.out_dir).exists() and not Path(args.out_dir).is_dir():
        fail(f"--out-dir {args.out_dir} is a file: name a folder")


def read_config(args: argparse.Namespace) -> Config:
    """Load the config of a classifier, detector or segmentor."""
    cfg = load_config(args.config, args.cfg_options)
    if cfg.get("default_scope") not in SCOPES or "model" not in cfg:
        fail(f"--config {args.config} needs a model and a default_scope of {', '.join(SCOPES)}")
    init_default_scope(cfg.default_scope)
    return cfg


def build_demo(args: argparse.Namespace, cfg: Config) -> Demo:
    """Build the model and what it needs."""
    device = check_device(args.device or get_device())
    with checkpoint_errors_in_one_line():
        model, checkpoint, unused = load_model(cfg, args.checkpoint, device)
    if unused:
        print(f"Checkpoint: {unused}")
    meta = find_dataset_meta(checkpoint, cfg, model)
    try:
        predictor = Predictor(cfg, model)
    except ValueError as error:
        fail(f"--config {args.config}: {error}")
    painter = Painter(cfg, meta, args.score_thr)
    progress = Progress(console=Console(stderr=True))
    return Demo(predictor, painter, meta["classes"], args.batch_size, progress)


def main() -> None:
    """Try a model."""
    args = parse_args()
    check_arguments(args)
    with interruption_in_one_line(f"what was done is in {args.out_dir}"):
        try_model(args)


def try_model(args: argparse.Namespace) -> None:
    """Predict on the inputs, and say how many there were."""
    out_dir = Path(args.out_dir)
    files, problems = find_files(args.inputs, out_dir)
    if not files:
        fail(f"INPUT: {'; '.join(problems)}")
    cfg = read_config(args)
    try:
        names = place_results(files, out_dir)
    except FileExistsError as error:
        fail(f"--out-dir {out_dir}: {error}")
    demo = build_demo(args, cfg)
    try:
        with demo.progress:
            demo.run(names)
    except OSError as error:
        fail(f"--out-dir {out_dir}: a result cannot be written: {error}")
    for problem in problems:
        print(problem, file=sys.stderr)
    failed, total = len(demo.failures) + len(problems), len(files) + len(problems)
    print(f"{total - failed} of {total} inputs done; pictures and JSON files are in {out_dir}")
    if failed:
        fail(f"{failed} of {total} inputs failed, see above")


if __name__ == "__main__":
    main()
