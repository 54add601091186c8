"""Count the parameters and multiply-adds of a config's model, as the published tables do.

Nothing is computed and no weight takes memory: the model is built on PyTorch's meta device.
"""

import argparse
import json
import logging
from collections.abc import Sequence

from crossformer_mm.analysis.flops import DEFAULT_SHAPES, Complexity, measure
from crossformer_mm.engine.config import add_config_arguments, choose_shape, load_model_config
from crossformer_mm.models.build import build_on_meta, image_channels
from crossformer_mm.utils.cli import OneLineParser, errors_in_one_line, run


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__)
    add_config_arguments(parser)
    shape = (
        "height and width of the image, or one number for both; if not given, 224 224 for a "
        "classifier, 1280 800 for a detector, 1024 1024 for a segmentor"
    )
    parser.add_argument("--shape", type=int, nargs="+", metavar="SIDE", help=shape)
    parser.add_argument("--json", action="store_true", help="print a JSON object as the last line")
    return parser.parse_args(argv)


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


def main(argv: Sequence[str] | None = None) -> None:
    """Count and print."""
    args = parse_args(argv)
    logging.disable(logging.INFO)
    cfg = load_model_config(args.config, args.cfg_options)
    shape, channels = choose_shape(args.shape, cfg, DEFAULT_SHAPES), image_channels(cfg)
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
    run(main)
