"""Test a classifier, detector or segmentor: by its scope, the config says which."""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while the libraries load

import argparse
import os
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict

from crossformer_mm.datasets.paths import check_data, walk_datasets
from crossformer_mm.engine import config
from crossformer_mm.engine.hooks.draw_predictions import DrawPredictionsHook
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
        config.check_writable("--out", args.out)
        kind = "DumpDetResults" if cfg.default_scope == "mmdet" else "DumpResults"
        cfg.test_evaluator.append(dict(type=kind, out_file_path=args.out))
    if args.show_dir is not None:
        config.check_writable("--show-dir", args.show_dir, is_folder=True)
    if args.tta:
        config.require(cfg, ("tta_model", "tta_pipeline"), "--tta")
        cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    is_for_server = [evaluator.get("format_only") for evaluator in cfg.test_evaluator]
    if cfg.default_scope == "mmseg" and is_for_server and all(is_for_server):
        do_without_labels(cfg.test_dataloader.dataset)
    if args.amp:
        config.check_amp()
        cfg.test_cfg.fp16 = True


def do_without_labels(dataset: ConfigDict) -> None:
    """Read images alone, as those of a server's test set are."""

    def images_alone(transforms: list) -> list:
        kept = []
        for transform in transforms:
            if isinstance(transform, list):
                kept += filter(None, [images_alone(transform)])
            elif config.type_name(transform) not in ("LoadAnnotations", "CheckSegLabels"):
                inner = transform.get("transforms")
                kept.append(
                    {**transform, "transforms": images_alone(inner)} if inner else transform
                )
        return kept

    for each in walk_datasets(dataset):
        (each.get("data_prefix") or {}).pop("seg_map_path", None)
        if "pipeline" in each:
            each.pipeline = images_alone(each.pipeline)


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


def main(argv: Sequence[str] | None = None) -> None:
    """Test as the command line says."""
    args = parse_args(argv)
    cfg = config.load_config(args.config, args.cfg_options, args.work_dir)
    apply_options(cfg, args)
    check_data(cfg, "test_dataloader")
    config.check_writable("--work-dir", cfg.work_dir, is_folder=True)
    known = cli.errors_in_one_line(CheckpointError, DataError)
    built = config.config_errors_in_one_line(cfg)
    with built, known, cli.full_disk_in_one_line(cfg.work_dir):
        runner = build_runner(cfg, args.launcher, all_weights_needed=True)
        if args.show_dir is not None:
            runner.register_hook(DrawPredictionsHook(os.path.abspath(args.show_dir)))
        runner.test()


if __name__ == "__main__":
    cli.run(main)
