"""Test a classifier, detector or segmentor: by its scope, the config says which."""

if __name__ == "__main__":
    from while_loading import end_if_interrupted

    end_if_interrupted()

import argparse
from pathlib import Path

from mmengine.config import Config, ConfigDict

from crossformer_mm.engine.launch import (
    add_common_arguments,
    build_runner,
    check_amp,
    check_data,
    check_file,
    checkpoint_errors_in_one_line,
    fail,
    load_config,
    require,
)
from crossformer_mm.utils.full_disk import full_disk_in_one_line
from crossformer_mm.utils.interruption import interruption_in_one_line
from crossformer_mm.utils.process_end import end_without_finalizing
from crossformer_mm.utils.process_failure import reason_for_launcher


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--out", metavar="FILE.pkl", help="write the predictions to a pickle file")
    parser.add_argument("--show-dir", metavar="DIR", help="draw predictions into this folder")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision (GPU)")
    parser.add_argument(
        "--eval", nargs="+", metavar="METRIC", help="COCO metrics: bbox, segm, proposal"
    )
    return parser.parse_args()


def apply_options(cfg: Config, args: argparse.Namespace) -> None:
    """Write what the options say into the config."""
    check_file(args.checkpoint, "checkpoint")
    cfg.load_from = args.checkpoint
    cfg.resume = False  # a resumed training has dumped the config with True
    if not isinstance(cfg.test_evaluator, (list, tuple)):
        cfg.test_evaluator = [cfg.test_evaluator]
    if args.eval is not None:
        choose_metrics(cfg.test_evaluator, args.eval)
    if args.out is not None:
        dump_predictions(cfg, args.out)
    if args.show_dir is not None:
        draw_predictions(cfg, Path(args.show_dir).absolute())
    if args.tta:
        require(cfg, ("tta_model", "tta_pipeline"), "--tta")
        cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    if args.amp:
        check_amp()
        cfg.test_cfg.fp16 = True


def choose_metrics(evaluators: list, metrics: list[str]) -> None:
    """Set the metrics of the COCO evaluators."""
    known = ("bbox", "segm", "proposal", "proposal_fast")
    for metric in metrics:
        if metric not in known:
            fail(f"--eval {metric}: choose from {', '.join(known)}")
    coco = [evaluator for evaluator in evaluators if evaluator.type.endswith("CocoMetric")]
    if not coco:
        fail(f"--eval is for COCO metrics; the config has {[e.type for e in evaluators]}")
    for evaluator in coco:
        evaluator.metric = metrics


def dump_predictions(cfg: Config, file: str) -> None:
    """Add the pseudo metric that writes all predictions."""
    if not file.endswith((".pkl", ".pickle")):
        fail(f"--out {file} must end with .pkl or .pickle")
    kind = "DumpDetResults" if cfg.default_scope == "mmdet" else "DumpResults"
    cfg.test_evaluator.append(dict(type=kind, out_file_path=file))


def draw_predictions(cfg: Config, folder: Path) -> None:
    """Draw every image: the hook's options differ between the libraries."""
    require(cfg.default_hooks, ("visualization",), "--show-dir")
    hook = cfg.default_hooks.visualization
    if cfg.default_scope == "mmdet":
        hook.update(draw=True, test_out_dir=str(folder))
    elif cfg.default_scope == "mmseg":
        hook.update(draw=True, interval=1)
        cfg.visualizer.save_dir = str(folder)
    else:
        hook.update(enable=True, interval=1, out_dir=str(folder))


def main() -> None:
    """Test."""
    with end_without_finalizing(), interruption_in_one_line(), reason_for_launcher():
        test(parse_args())


def test(args: argparse.Namespace) -> None:
    """Test as the command line says."""
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    apply_options(cfg, args)
    check_data(cfg, "test_dataloader")
    with checkpoint_errors_in_one_line(), full_disk_in_one_line(cfg.work_dir):
        build_runner(cfg, args.launcher, all_weights_needed=True).test()


if __name__ == "__main__":
    main()
