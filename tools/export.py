"""Write a whole model as an ONNX or OpenVINO file that runs without PyTorch and the libraries.

It takes images as they come from a file, of one size, and gives what a user asks for: scores,
logits or labels, or boxes, scores, labels and masks. It consists of ONNX's own operators, and is
kept only if it finds what PyTorch does.
"""

import argparse
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config

from crossformer_mm.checkpoints.loader import load_model
from crossformer_mm.deploy import compare, onnx
from crossformer_mm.deploy.int8 import quantize
from crossformer_mm.deploy.letterbox import describe, read_images
from crossformer_mm.deploy.runtimes import ExportedModel
from crossformer_mm.deploy.whole_models import whole_model
from crossformer_mm.engine import config
from crossformer_mm.utils.cli import OneLineParser, errors_in_one_line, fail, run, say
from crossformer_mm.utils.errors import CheckpointError, ExportError, one_line

DEFAULT_SHAPES = {"mmpretrain": (224, 224), "mmdet": (800, 1280), "mmseg": (512, 512)}
COMPARED_IMAGES = 3


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__)
    config.add_config_arguments(parser)
    add = parser.add_argument
    add("checkpoint", help="checkpoint file")
    add("out", metavar="OUT", type=Path, help="file to write, .onnx or .xml (OpenVINO)")
    shape = "of the images; if not given, 224 224, for a detector 800 1280, for a segmentor 512 512"
    add("--shape", type=int, nargs=2, metavar=("H", "W"), help=shape)
    add("--format", choices=onnx.SUFFIXES, help="if not given, by the name's ending")
    add("--batch", type=int, default=1, metavar="B", help="images at once; default %(default)s")
    add("--float", action="store_true", help="take float32 images instead of uint8")
    add("--labels", action="store_true", help="of a segmentor, labels instead of logits")
    add("--paste-masks", action="store_true", help="masks of the image's size instead of 28 x 28")
    add("--int8", action="store_true", help="quantise, calibrated on the training images")
    add("--calibration", type=int, default=300, metavar="N", help="images; default %(default)s")
    return parser.parse_args(argv)


def take_images(cfg: Config, channels: int, shape: tuple[int, int]) -> tuple[np.ndarray, str]:
    """Images to compare on, and what they are: of the test set, or random.

    They are random where the test set is missing, and where they are not in colour.
    """
    reason = f"{channels} channels"
    if channels == 3:
        try:
            images = read_images(cfg, "test_dataloader", shape, COMPARED_IMAGES)
            return images, f"{len(images)} images of the test set"
        except OSError:
            reason = "no test set"
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(COMPARED_IMAGES, channels, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, shape, mode="bicubic").clamp(0, 1)
    return (images * 255).byte().numpy(), f"{COMPARED_IMAGES} random images ({reason})"


def take_calibration(cfg: Config, shape: tuple[int, int], number: int) -> np.ndarray:
    """Images of the training set; fails if they cannot be read, or none are asked for."""
    if number < 1:
        fail(f"--calibration {number} must be at least 1")
    try:
        return read_images(cfg, "train_dataloader", shape, number)
    except Exception as error:
        raise ExportError(f"--int8 needs training images: {one_line(str(error))}") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Export, compare and print."""
    args = parse_args(argv)
    logging.disable(logging.WARNING)  # what PyTorch's exporter could not simplify fills screens
    warnings.simplefilter("ignore")
    if args.batch < 1:
        fail(f"--batch {args.batch} must be at least 1")
    out = args.out.with_suffix(onnx.SUFFIXES[args.format]) if args.format else args.out
    with errors_in_one_line(CheckpointError, ExportError):
        onnx.check_destination(out)
        more = ["openvino"] * (out.suffix == ".xml") + ["nncf"] * args.int8
        onnx.check_installed(*more)
        cfg = config.load_model_config(args.config, args.cfg_options)
        config.check_file(args.checkpoint, "checkpoint")
        shape = config.choose_shape(args.shape, cfg, DEFAULT_SHAPES)
        cfg.model.backbone.attn_backend = "eager"  # which uses PyTorch's own operators alone
        if cfg.default_scope == "mmseg":
            cfg.model.test_cfg = dict(mode="whole")
        model, checkpoint, _ = load_model(cfg, args.checkpoint, torch.device("cpu"))
        whole = whole_model(model, cfg, args.labels, args.paste_masks)
        channels = model.backbone.in_channels
        if args.int8 and channels != 3:
            raise ExportError(f"--int8 calibrates on RGB images, not on {channels} channels")
        calibration = take_calibration(cfg, shape, args.calibration) if args.int8 else None
        dtype = torch.float32 if args.float else torch.uint8
        blank = torch.zeros(args.batch, channels, *shape, dtype=dtype)
        written = onnx.export(whole, blank, describe(cfg, checkpoint, model, shape))
        if out.suffix == ".xml":
            written = onnx.to_openvino(written)
        if calibration is not None:
            written = quantize(written, calibration, args.batch)
        images, what = take_images(cfg, channels, shape)
        with onnx.written(written, out) as temporary:
            exported = ExportedModel(temporary)
            allowed = compare.TOLERANCES["int8" if args.int8 else "f32"]
            deviations = compare.check(exported, model, cfg.default_scope, images, allowed)
    found = ", ".join(f"{name} {deviation:.1e}" for name, deviation in deviations.items())
    print(f"Deviation from PyTorch on {what}: {found}")
    kind = f"{np.dtype(exported.dtype).name} {'RGB ' if channels == 3 else ''}images"
    say(f"Wrote {out}, for {kind} {exported.shape}")


if __name__ == "__main__":
    run(main)
