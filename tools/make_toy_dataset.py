"""Draws a small data set in the layout of a public one, to try training and testing in minutes.

python tools/make_toy_dataset.py coco data/toy_coco --train 400 --val 100
"""

import argparse
import sys

from crossformer_mm.toy.coco import write_coco


class OneLineErrorParser(argparse.ArgumentParser):
    """Leaves the usage out of error messages, so that the error itself is not lost in it."""

    def error(self, message: str) -> None:
        """Print one line and leave with status 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def make_coco(args: argparse.Namespace) -> None:
    """Write the data set and say what is in it."""
    splits = write_coco(
        args.out, args.train, args.val, tuple(args.size), args.seed, args.overwrite, print_now
    )
    for split, made in splits.items():
        objects = made["objects"]
        counts = ", ".join(f"{name} {count}" for name, count in sorted(objects.items()))
        print(f"{split}: {made['images']} images, {objects.total()} objects: {counts}")
    print(f"The data set, in the layout of COCO 2017, is in {args.out}")


def print_now(line: str) -> None:
    """Print a line of progress even where output is buffered."""
    print(line, flush=True)


def parse_args() -> argparse.Namespace:
    """Arguments of the chosen data set, with its writer in ``make``."""
    parser = OneLineErrorParser(description=__doc__.splitlines()[0])
    datasets = parser.add_subparsers(metavar="DATASET", required=True)
    add_coco(datasets)
    return parser.parse_args()


def add_coco(datasets: argparse._SubParsersAction) -> None:
    """Add the ``coco`` command."""
    parser = datasets.add_parser(
        "coco",
        help="detection and instance segmentation, like COCO 2017",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(make=make_coco)
    add_common_arguments(parser)
    parser.add_argument("--train", type=int, default=400, metavar="N", help="training images")
    parser.add_argument("--val", type=int, default=100, metavar="N", help="validation images")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(320, 240),
        metavar=("W", "H"),
        help="width and height in pixels; about one image in five is turned on its side",
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every data set takes."""
    parser.add_argument("out", metavar="OUT", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same data set")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace folders of an earlier data set in OUT"
    )


def main() -> None:
    """Make the data set; end with one line and status 1 if that is not possible."""
    args = parse_args()
    try:
        args.make(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
