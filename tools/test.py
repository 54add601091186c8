"""Test a classifier, detector or segmentor: by its scope, the config says which."""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while the libraries load

import argparse
import os
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict

from crossformer_mm.datasets.paths import check_data
from crossformer_mm.engine import config
from crossformer_mm.engine.runner import build_runner
from crossformer_mm.utils import cli
from crossformer_mm.utils.errors import CheckpointError, DataError


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.OneLineParser(description=__doc__)
    config.add_common_arguments(parser)
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--out", metavar="FILE.pkl", help="write the predictions to a pickle file")
    parser.add_argument("--show-dir", metavar="DIR", help="draw predictions into this folder")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    parser.add_argument("--eval", nargs="+", metavar="METRIC", help="COCO's: bbox, segm, proposal")
    return parser.parse_args(argv)


def apply_options(cfg: Config, args: argparse.Namespace) -> None:
    """Write what the options say into the config."""
    config.check_file(args.checkpoint, "checkpoint")
    cfg.load_from = args.checkpoint
    cfg.resume = False  # a resumed training has dumped the config with True
    if not isinstance(cfg.test_evaluator, (list, tuple)):
        cfg.test_evaluator = [cfg.test_evaluator]
    if args.eval is not None:
        choose_metrics(cfg.test_evaluator, args.eval)
    if args.out is not None:
        if not args.out.endswith((".pkl", ".pickle")):
            cli.fail(f"--out {args.out} must end with .pkl or .pickle")
        kind = "DumpDetResults" if cfg.default_scope == "mmdet" else "DumpResults"
        cfg.test_evaluator.append(dict(type=kind, out_file_path=args.out))
    if args.show_dir is not None:
        draw_predictions(cfg, os.path.abspath(args.show_dir))
    if args.tta:
        config.require(cfg, ("tta_model", "tta_pipeline"), "--tta")
        cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    if args.amp:
        config.check_amp()
        cfg.test_cfg.fp16 = True


def choose_metrics(evaluators: list, metrics: list[str]) -> None:
    """Set the metrics of the COCO evaluators."""
    known = ("bbox", "segm", "proposal", "proposal_fast")
    if unknown := [metric for metric in metrics if metric not in known]:
        cli.fail(f"--eval {unknown[0]}: choose from {', '.join(known)}")
    kinds = [config.type_name(evaluator) for evaluator in evaluators]
    if "CocoMetric" not in kinds:
        cli.fail(f"--eval is for COCO metrics; the config has {', '.join(kinds)}")
    for evaluator, kind in zip(evaluators, kinds, strict=True):
        if kind == "CocoMetric":
            evaluator.metric = metrics


def draw_predictions(cfg: Config, folder: str) -> None:
    """Draw every image: the hook's options differ between the libraries."""
    config.require(cfg.default_hooks, ("visualization",), "--show-dir")
    hook = cfg.default_hooks.visualization
    if cfg.default_scope == "mmdet":
        hook.update(draw=True, test_out_dir=folder)
    elif cfg.default_scope == "mmseg":
        hook.update(draw=True, interval=1)
        cfg.visualizer.save_dir = folder
    else:
        hook.update(enable=True, interval=1, out_dir=folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Test as the command line says."""
    args = parse_args(argv)
    cfg = config.load_config(args.config, args.cfg_options, args.work_dir)
    apply_options(cfg, args)
    check_data(cfg, "test_dataloader")
    known = cli.errors_in_one_line(CheckpointError, DataError)
    with known, cli.full_disk_in_one_line(cfg.work_dir):
        build_runner(cfg, args.launcher, all_weights_needed=True).test()


if __name__ == "__main__":
    cli.run(main)
