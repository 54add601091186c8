"""Convert a checkpoint of the authors to the layout of mmpretrain, mmdet and mmseg.

Classifiers, backbones, detectors and segmentors are recognised by what they hold, and compared
with the model before anything is written. No code in the file is run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from crossformer_mm.checkpoints.convert import convert_checkpoint
from crossformer_mm.engine.config import load_config
from crossformer_mm.utils.cli import OneLineParser, errors_in_one_line, run, say


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("src", metavar="SRC", type=Path, help="checkpoint file")
    parser.add_argument(
        "dst", metavar="DST", type=Path, help="new file; .safetensors selects that format"
    )
    parser.add_argument(
        "--arch", help="fail unless it is of this architecture; without it, any of the eight"
    )
    parser.add_argument(
        "--config",
        help="config whose model it must fit; needed for models other than the published ones. "
        "For a detector or segmentor, a classifier gives its backbone",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert."""
    args = parse_args(argv)
    cfg = load_config(args.config) if args.config is not None else None
    with errors_in_one_line(ValueError, OSError):
        say(*convert_checkpoint(args.src, args.dst, args.arch, cfg))


if __name__ == "__main__":
    run(main)
