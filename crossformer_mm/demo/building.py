"""From a command line to a model at work."""

from argparse import Namespace
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.progress import Progress

from crossformer_mm.demo.class_names import find_dataset_meta
from crossformer_mm.demo.drawing import Painter
from crossformer_mm.demo.prediction import Predictor
from crossformer_mm.demo.run import Demo
from crossformer_mm.launch import (
    SCOPES,
    check_device,
    check_file,
    checkpoint_errors_in_one_line,
    fail,
    load_config,
)
from crossformer_mm.trained_model import load_model

# What classes of models raise at arguments that they do not take.
CONFIG_ERRORS = (AssertionError, AttributeError, ImportError, LookupError, TypeError, ValueError)


def check_arguments(args: Namespace) -> None:
    """Fail on values that cannot be used."""
    check_file(args.checkpoint, "--checkpoint")
    if args.batch_size < 1:
        fail(f"--batch-size {args.batch_size}: give 1 or more")
    if args.score_thr is not None and not 0 <= args.score_thr <= 1:
        fail(f"--score-thr {args.score_thr}: give a number from 0 to 1")
    if not args.out_dir:
        fail("--out-dir is empty: name a folder")
    if Path(args.out_dir).exists() and not Path(args.out_dir).is_dir():
        fail(f"--out-dir {args.out_dir} is a file: name a folder")


def read_config(args: Namespace) -> Config:
    """Load the config of a classifier, detector or segmentor."""
    cfg = load_config(args.config, args.cfg_options)
    if cfg.get("default_scope") not in SCOPES or not isinstance(cfg.get("model"), dict):
        fail(f"--config {args.config} needs a model and a default_scope of {', '.join(SCOPES)}")
    init_default_scope(cfg.default_scope)
    return cfg


def build_demo(args: Namespace, cfg: Config) -> Demo:
    """Build the model and what it needs."""
    device = check_device(args.device or get_device())
    try:
        with checkpoint_errors_in_one_line():
            model, checkpoint, unused = load_model(cfg, args.checkpoint, device)
    except CONFIG_ERRORS as error:
        fail(f"--config {args.config}: its model cannot be built: {' '.join(str(error).split())}")
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
