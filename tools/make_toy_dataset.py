"""Draws a small data set in the layout of a public one, to try training and testing in minutes.

python tools/make_toy_dataset.py coco data/toy_coco --train 400 --val 100
python tools/make_toy_dataset.py ade data/toy_ade
python tools/make_toy_dataset.py imagenet data/toy_imagenet
"""

import argparse
from collections.abc import Sequence
from importlib import import_module

from crossformer_mm.utils.cli import OneLineParser, errors_in_one_line, run, say

DATASETS = {  # what it is for, what its summary counts, and defaults
    "coco": ("detection, like COCO 2017", "objects", 400, 100, (320, 240)),
    "ade": ("segmentation, like ADEChallengeData2016", "images_with", 400, 100, (256, 192)),
    "imagenet": ("classification, like ImageNet-1K", "classes", 800, 200, (224, 168)),
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments, with the name of the data set in ``dataset``."""
    parser = OneLineParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(metavar="DATASET", dest="dataset", required=True)
    with_defaults = dict(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, (summary, _, train, val, size) in DATASETS.items():
        add = commands.add_parser(name, help=summary, **with_defaults).add_argument
        add("out", metavar="OUT", help="folder to write to")
        add("--train", type=int, metavar="N", default=train, help="training images")
        add("--val", type=int, metavar="N", default=val, help="validation images")
        about = "width and height in pixels; one image in five is turned on its side"
        add("--size", type=int, nargs=2, metavar=("W", "H"), default=size, help=about)
        add("--seed", type=int, default=0, help="same seed, same data set")
        add("--overwrite", action="store_true", help="replace an earlier toy data set in OUT")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data set and say what is in it; one line and status 1 if that is not possible."""
    args = parse_args(argv)
    name, counted = args.dataset, DATASETS[args.dataset][1]
    options = args.train, args.val, tuple(args.size), args.seed, args.overwrite
    # The others need no pycocotools.
    write = getattr(import_module(f"crossformer_mm.datasets.toy.{name}"), f"write_{name}")
    with errors_in_one_line(ValueError, OSError):
        summary = write(args.out, *options)
    for split, made in summary.items():
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(made[counted].items()))
        print(f"{split}: {made['images']} images, {counted.replace('_', ' ')}: {counts}")
    say(f"The data set is in {args.out}")


if __name__ == "__main__":
    run(main)
