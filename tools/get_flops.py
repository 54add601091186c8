"""Count the parameters and multiply-adds of a config's model, as the published tables do.

Nothing is computed and no weight takes memory: the model is built on PyTorch's meta device.
"""

import argparse
import json
import logging

from mmengine.config import Config

from crossformer_mm.analysis.flops import DEFAULT_SHAPES, Complexity, measure
from crossformer_mm.engine.launch import (
    add_config_arguments,
    errors_in_one_line,
    fail,
    load_config,
    shape_for_task,
)
from crossformer_mm.models.build import build_on_meta, image_channels
from crossformer_mm.models.crossformer import MIN_IMAGE_SIZE


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        metavar="SIDE",
        help="height and width of the image, or one number for both; if not given, 224 224 for a "
        "classifier, 1280 800 for a detector, 1024 1024 for a segmentor",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object as the last line")
    return parser.parse_args()


def choose_shape(given: list[int] | None, cfg: Config) -> tuple[int, int]:
    """Height and width: what the command line says, or the default of the config's task."""
    if given is None:
        return shape_for_task(cfg, DEFAULT_SHAPES)
    shape = tuple(given * 2 if len(given) == 1 else given)
    if len(shape) != 2 or min(shape) < MIN_IMAGE_SIZE:
        fail(
            f"--shape {' '.join(map(str, given))}: give height and width, at least {MIN_IMAGE_SIZE}"
        )
    return shape


def print_table(complexity: Complexity, shape: tuple[int, int, int]) -> None:
    """Print the parts, then the totals in the form of the authors' tool."""
    print(f"{'part':<16} {'params (M)':>12} {'FLOPs (G)':>12}")
    for name, params in complexity.params_of.items():
        flops = complexity.flops_of.get(name, 0)
        print(f"{name:<16} {params / 1e6:>12.2f} {flops / 1e9:>12.2f}")
    if complexity.padding:
        print(f"of the backbone's, on padding: {complexity.padding / 1e9:>13.2f}")
    line = "=" * 30
    print(f"{line}\nInput shape: {shape}")
    print(f"Flops: {complexity.flops / 1e9:.2f} GFLOPs")
    print(f"Params: {complexity.params / 1e6:.2f} M\n{line}")


def main() -> None:
    """Count and print."""
    args = parse_args()
    logging.disable(logging.INFO)
    cfg = load_config(args.config, args.cfg_options)
    if "backbone" not in cfg.get("model", {}):
        fail(f"config {args.config} has no model with a backbone")
    shape = choose_shape(args.shape, cfg)
    channels = image_channels(cfg)
    with errors_in_one_line(ValueError):
        complexity = measure(build_on_meta(cfg), shape, channels)
    print_table(complexity, (channels, *shape))
    if args.json:
        result = dict(
            config=args.config,
            shape=list(shape),
            params=complexity.params,
            flops=complexity.flops,
            backbone_params=complexity.params_of["backbone"],
            backbone_flops=complexity.flops_of["backbone"],
        )
        print(json.dumps(result))


if __name__ == "__main__":
    main()
