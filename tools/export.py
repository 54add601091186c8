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
from collections.abc import Sequence
from pathlib import Path

import torch

from crossformer_mm.checkpoints.loader import load_model
from crossformer_mm.deploy import onnx
from crossformer_mm.engine import config
from crossformer_mm.utils.cli import OneLineParser, errors_in_one_line, run
from crossformer_mm.utils.errors import CheckpointError

DEFAULT_SHAPES = {"mmpretrain": (224, 224), "mmdet": (800, 1280), "mmseg": (512, 512)}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__)
    config.add_config_arguments(parser)
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("out", metavar="OUT.onnx", type=Path, help="file to write")
    shape = "of the image; if not given, 224 224, for a detector 800 1280, for a segmentor 512 512"
    parser.add_argument("--shape", type=int, nargs=2, metavar=("H", "W"), help=shape)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Export, compare and print."""
    args = parse_args(argv)
    logging.disable(logging.WARNING)  # what PyTorch's exporter could not simplify fills screens
    warnings.simplefilter("ignore")
    with errors_in_one_line(CheckpointError, onnx.ExportError):
        onnx.check_destination(args.out)
        onnx.check_installed()
        cfg = config.load_model_config(args.config, args.cfg_options)
        config.check_file(args.checkpoint, "checkpoint")
        shape = config.choose_shape(args.shape, cfg, DEFAULT_SHAPES)
        cfg.model.backbone.attn_backend = "eager"  # which uses PyTorch's own operators alone
        model, _, _ = load_model(cfg, args.checkpoint, torch.device("cpu"))
        part = onnx.DensePart(model).eval()
        deviations = onnx.export_onnx(part, shape, args.out, onnx.describe_input(cfg))
    worst = max(deviations, key=deviations.get)
    print(
        f"Maximum deviation from PyTorch: {deviations[worst]:.1e} of the largest value of {worst} "
        f"({onnx.TOLERANCE:.0e} is allowed)"
    )
    images = (1, part.backbone.in_channels, *shape)
    print(f"Wrote {args.out}, for normalised float32 images {images}")


if __name__ == "__main__":
    run(main)
