"""Write a model as an ONNX file, with PyTorch's current exporter.

The file holds what is one graph of tensors: a classifier's logits; the logits of a segmentor's
decode head, before they are resized to the image; of a one-stage detector scores and boxes of every
level; of a two-stage detector the maps of its neck and the outputs of its RPN. It takes normalised
images; mean, deviation and order of channels stand in its metadata. It is run by onnxruntime, on
images of several sizes with --dynamic, and kept only if it computes what PyTorch does.
"""

import argparse
import logging
import sys
from pathlib import Path

from mmengine.config import Config

from crossformer_mm.export.dense_part import load_dense_part
from crossformer_mm.export.described_images import describe_input, smallest_test_side
from crossformer_mm.export.destination import check_destination
from crossformer_mm.export.errors import ExportError
from crossformer_mm.export.image_sizes import describe_sizes, smallest_dynamic_side
from crossformer_mm.export.onnx_file import TOLERANCE, check_installed, write_onnx
from crossformer_mm.launch import (
    add_config_arguments,
    check_file,
    errors_in_one_line,
    fail,
    load_config,
    shape_for_task,
)
from crossformer_mm.models.crossformer import MIN_IMAGE_SIZE
from crossformer_mm.safe_load import CheckpointError

DEFAULT_SHAPES = {"mmpretrain": (224, 224), "mmdet": (800, 1280), "mmseg": (512, 512)}
DEFAULT_DYNAMIC_SHAPE = (512, 640)


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
        "a detector, 512 512 for a segmentor, 512 640 with --dynamic",
    )
    parser.add_argument(
        "--dynamic",
        action="store_true",
        help="any batch size, and any height and width for which every map is larger than a "
        "group: from 225 to 4096 pixels for the published models",
    )
    return parser.parse_args()


def choose_shape(args: argparse.Namespace, cfg: Config) -> tuple[int, int]:
    """Height and width: what the command line says, or the default of the config's task."""
    if args.shape is None and args.dynamic:
        return DEFAULT_DYNAMIC_SHAPE
    if args.shape is None:
        return shape_for_task(cfg, DEFAULT_SHAPES)
    if min(args.shape) < MIN_IMAGE_SIZE:
        given = f"--shape {args.shape[0]} {args.shape[1]}"
        fail(f"{given}: sides must be at least {MIN_IMAGE_SIZE} pixels")
    return tuple(args.shape)


def warn_of_test_size(cfg: Config, smallest: int) -> None:
    """Print a warning if the config tests smaller images than the file takes."""
    side = smallest_test_side(cfg)
    if side is not None and side < smallest:
        print(
            f"warning: the config tests images with sides of {side} pixels, which this file "
            f"refuses: for them, export without --dynamic, with --shape H W",
            file=sys.stderr,
        )


def main() -> None:
    """Export, compare and print."""
    args = parse_args()
    logging.disable(logging.INFO)
    if args.out.suffix != ".onnx":
        fail(f"OUT {args.out} must end with .onnx")
    with errors_in_one_line(ExportError):
        check_destination(args.out)
    cfg = load_config(args.config, args.cfg_options)
    if "backbone" not in cfg.get("model", {}):
        fail(f"config {args.config} has no model with a backbone")
    check_file(args.checkpoint, "checkpoint")
    shape = choose_shape(args, cfg)
    with errors_in_one_line(CheckpointError, ExportError):
        check_installed()
        part = load_dense_part(cfg, args.checkpoint, args.dynamic)
        comparisons = write_onnx(part, shape, args.dynamic, args.out, describe_input(cfg))
    for found in comparisons:
        print(f"images {found.shape}: {found.output} deviates most, by {found.deviation:.1e}")
    worst = max(found.deviation for found in comparisons)
    print(
        f"Maximum deviation from PyTorch: {worst:.1e} of an output's largest value "
        f"({TOLERANCE:.0e} is allowed)"
    )
    sizes = describe_sizes(part.backbone, args.dynamic, shape)
    print(f"Wrote {args.out}, for normalised float32 images {sizes}")
    if args.dynamic:
        warn_of_test_size(cfg, smallest_dynamic_side(part.backbone))


if __name__ == "__main__":
    main()
