"""Write a model as an ONNX file, with PyTorch's current exporter, for images of one size.

The file holds what is one graph of tensors: a classifier's logits; the logits of a segmentor's
decode head, before they are resized to the image; of a one-stage detector scores and boxes of every
level; of a two-stage detector the maps of its neck and the outputs of its RPN. It takes a
normalised image; mean, deviation and order of channels stand in its metadata. It is run by
onnxruntime, and kept only if it computes what PyTorch does.
"""

import argparse
import logging
import warnings
from pathlib import Path

from mmengine.config import Config

from crossformer_mm.deploy.dense_part import ExportError, load_dense_part
from crossformer_mm.deploy.onnx import (
    TOLERANCE,
    check_destination,
    check_installed,
    describe_input,
    export_onnx,
)
from crossformer_mm.engine.launch import (
    add_config_arguments,
    check_file,
    errors_in_one_line,
    fail,
    load_config,
    shape_for_task,
)
from crossformer_mm.models.crossformer import MIN_IMAGE_SIZE
from crossformer_mm.utils.errors import CheckpointError

DEFAULT_SHAPES = {"mmpretrain": (224, 224), "mmdet": (800, 1280), "mmseg": (512, 512)}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("out", metavar="OUT.onnx", type=Path, help="file to write")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="height and width of the image; if not given, 224 224 for a classifier, 800 1280 for "
        "a detector, 512 512 for a segmentor",
    )
    return parser.parse_args()


def choose_shape(args: argparse.Namespace, cfg: Config) -> tuple[int, int]:
    """Height and width: what the command line says, or the default of the config's task."""
    if args.shape is None:
        return shape_for_task(cfg, DEFAULT_SHAPES)
    if min(args.shape) < MIN_IMAGE_SIZE:
        given = f"--shape {args.shape[0]} {args.shape[1]}"
        fail(f"{given}: sides must be at least {MIN_IMAGE_SIZE} pixels")
    return tuple(args.shape)


def main() -> None:
    """Export, compare and print."""
    args = parse_args()
    logging.disable(logging.INFO)
    # What PyTorch's exporter could not simplify would fill the screen.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with errors_in_one_line(CheckpointError, ExportError):
        check_destination(args.out)
        check_installed()
        cfg = load_config(args.config, args.cfg_options)
        if "backbone" not in cfg.get("model", {}):
            fail(f"config {args.config} has no model with a backbone")
        check_file(args.checkpoint, "checkpoint")
        shape = choose_shape(args, cfg)
        part = load_dense_part(cfg, args.checkpoint)
        deviations = export_onnx(part, shape, args.out, describe_input(cfg))
    worst = max(deviations, key=deviations.get)
    print(
        f"Maximum deviation from PyTorch: {deviations[worst]:.1e} of the largest value of {worst} "
        f"({TOLERANCE:.0e} is allowed)"
    )
    images = (1, part.backbone.in_channels, *shape)
    print(f"Wrote {args.out}, for normalised float32 images {images}")


if __name__ == "__main__":
    main()
