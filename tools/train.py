"""Train a classifier, detector or segmentor: by its scope, the config says which."""

import os
import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while the libraries load
    line = b"stopped before training began: --resume goes on from the last checkpoint\n"
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: (os.write(2, line), os._exit(os.EX_TEMPFAIL)))

import argparse
from collections.abc import Sequence
from contextlib import nullcontext

from mmengine.config import Config

from crossformer_mm.datasets.paths import check_data
from crossformer_mm.engine import config
from crossformer_mm.engine.dist import is_first_process
from crossformer_mm.engine.hooks.loss_check import InvalidLossError
from crossformer_mm.engine.hooks.whole_checkpoints import find_checkpoint_to_resume
from crossformer_mm.engine.runner import build_runner
from crossformer_mm.engine.work_dir import only_training_in
from crossformer_mm.utils.cli import (
    OneLineParser,
    errors_in_one_line,
    full_disk_in_one_line,
    run,
    say,
)
from crossformer_mm.utils.errors import CheckpointError, DataError


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__)
    config.add_common_arguments(parser)
    parser.add_argument("--pretrained", metavar="CKPT", help="weights the backbone starts from")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale lr with the batch size")
    resume = "go on from a checkpoint; without one, from the last complete one in the work folder"
    parser.add_argument("--resume", nargs="?", const="auto", metavar="CKPT", help=resume)
    return parser.parse_args(argv)


def apply_options(cfg: Config, args: argparse.Namespace) -> None:
    """Write what the options say into the config."""
    if args.pretrained is not None:
        config.check_file(args.pretrained, "--pretrained")
        cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=args.pretrained)
    if args.amp:
        config.check_amp()
        cfg.optim_wrapper.update(type="AmpOptimWrapper", loss_scale="dynamic")
    if args.auto_scale_lr:
        config.require(cfg, ("auto_scale_lr",), "--auto-scale-lr")
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        found = args.resume
        if found == "auto":
            found = find_checkpoint_to_resume(cfg.work_dir)
            say(f"Resuming from {found}" if found else f"Nothing to resume in {cfg.work_dir}")
        cfg.resume = found is not None
        if cfg.resume:
            cfg.load_from = str(found)
            config.check_file(cfg.load_from, "--resume")


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    args = parse_args(argv)
    cfg = config.load_config(args.config, args.cfg_options, args.work_dir)
    apply_options(cfg, args)
    config.check_loops(cfg)
    check_data(cfg, "train_dataloader", "val_dataloader")
    config.check_writable("--work-dir", cfg.work_dir, is_folder=True)
    known = errors_in_one_line(CheckpointError, DataError, InvalidLossError)
    built = config.config_errors_in_one_line(cfg)
    is_checked = cfg.get("check_work_dir", True) and is_first_process(args.launcher)
    alone = only_training_in(cfg.work_dir) if is_checked else nullcontext()
    with built, known, full_disk_in_one_line(cfg.work_dir), alone:
        build_runner(cfg, args.launcher, all_weights_needed=cfg.get("resume", False)).train()


if __name__ == "__main__":
    run(main, "--resume goes on from the last checkpoint")
