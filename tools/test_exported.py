"""Test an exported model with the metrics of its config, in onnxruntime or OpenVINO.

Images are resized and filled up to the one size that the file takes. A checkpoint in the place of
the exported file is tested in PyTorch on the same images, for comparison.
"""

import argparse
from collections.abc import Sequence

from crossformer_mm.datasets.paths import check_data
from crossformer_mm.deploy.evaluation import StandIn
from crossformer_mm.deploy.letterbox import use_letterbox
from crossformer_mm.deploy.runtimes import PRECISIONS, RUNTIMES, ExportedModel
from crossformer_mm.engine import config
from crossformer_mm.engine.runner import build_runner
from crossformer_mm.utils import cli
from crossformer_mm.utils.errors import CheckpointError, DataError, ExportError


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.OneLineParser(description=__doc__)
    config.add_config_arguments(parser)
    add = parser.add_argument
    add("model", help="exported file, .onnx or .xml; or a checkpoint, with --shape")
    add("--runtime", choices=RUNTIMES.values(), help="if not given, by the name's ending")
    add("--precision", choices=PRECISIONS, default="f32", help="of OpenVINO; default %(default)s")
    add("--threads", type=int, metavar="N", help="of the runtime, all cores if not given")
    add("--shape", type=int, nargs=2, metavar=("H", "W"), help="of a checkpoint's images")
    add("--work-dir", help="folder for logs and metrics")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Test as the command line says."""
    args = parse_args(argv)
    cfg = config.load_config(args.config, args.cfg_options, args.work_dir)
    config.check_file(args.model, "model")
    check_data(cfg, "test_dataloader")
    is_exported = args.model.endswith(tuple(RUNTIMES))
    if is_exported == (args.shape is not None):
        cli.fail("--shape is given for a checkpoint, and only for one")
    with cli.errors_in_one_line(CheckpointError, DataError, ExportError):
        exported = None
        if is_exported:
            exported = ExportedModel(args.model, args.runtime, args.precision, args.threads)
        cfg.load_from, cfg.resume = None if is_exported else args.model, False
        use_letterbox(cfg, "test_dataloader", exported.shape[2:] if exported else args.shape)
        cfg.test_dataloader.batch_size = exported.shape[0] if exported else 1
        if cfg.default_scope == "mmseg":
            cfg.model.test_cfg = dict(mode="whole")
        runner = build_runner(cfg, "none", all_weights_needed=not is_exported)
        if exported:
            runner.model = StandIn(exported, runner.model)
        runner.test()


if __name__ == "__main__":
    cli.run(main)
