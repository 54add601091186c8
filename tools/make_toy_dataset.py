"""Draws a small data set in the layout of a public one, to try training and testing in minutes.

python tools/make_toy_dataset.py coco data/toy_coco --train 400 --val 100
python tools/make_toy_dataset.py ade data/toy_ade
python tools/make_toy_dataset.py imagenet data/toy_imagenet
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable

from crossformer_mm.datasets.toy.ade import write_ade
from crossformer_mm.datasets.toy.coco import write_coco
from crossformer_mm.datasets.toy.imagenet import write_imagenet


class OneLineErrorParser(argparse.ArgumentParser):
    """Leaves the usage out of error messages, so that the error itself is not lost in it."""

    def error(self, message: str) -> None:
        """Print one line and leave with status 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def make_coco(args: argparse.Namespace) -> None:
    """Write the data set and say what is in it."""
    for split, made in write(write_coco, args).items():
        objects = made["objects"]
        print(f"{split}: {made['images']} images, {objects.total()} objects: {listed(objects)}")
    print(f"The data set, in the layout of COCO 2017, is in {args.out}")


def make_ade(args: argparse.Namespace) -> None:
    """Write the data set and say how many images have each class."""
    for split, made in write(write_ade, args).items():
        print(f"{split}: {made['images']} images, with: {listed(made['images_with'])}")
    print(f"The data set, in the layout of ADEChallengeData2016, is in {args.out}")


def make_imagenet(args: argparse.Namespace) -> None:
    """Write the data set and say how many images each class has."""
    for split, made in write(write_imagenet, args).items():
        print(f"{split}: {made['images']} images: {listed(made['classes'])}")
    print(f"The data set, in the layout of ImageNet-1K, is in {args.out}")


def write(writer: Callable[..., dict], args: argparse.Namespace) -> dict[str, dict]:
    """Call a writer with the arguments that all of them take."""
    size = tuple(args.size)
    return writer(args.out, args.train, args.val, size, args.seed, args.overwrite, print_now)


def listed(counts: Counter) -> str:
    """Names and counts in the order of the names."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def print_now(line: str) -> None:
    """Print a line of progress even where output is buffered."""
    print(line, flush=True)


def parse_args() -> argparse.Namespace:
    """Arguments of the chosen data set, with its writer in ``make``."""
    parser = OneLineErrorParser(description=__doc__.splitlines()[0])
    datasets = parser.add_subparsers(metavar="DATASET", required=True)
    add_coco(datasets)
    add_ade(datasets)
    add_imagenet(datasets)
    return parser.parse_args()


def add_coco(datasets: argparse._SubParsersAction) -> None:
    """Add the ``coco`` command."""
    parser = add_dataset(datasets, "coco", "detection and instance segmentation, like COCO 2017")
    parser.set_defaults(make=make_coco, train=400, val=100, size=(320, 240))


def add_ade(datasets: argparse._SubParsersAction) -> None:
    """Add the ``ade`` command."""
    parser = add_dataset(datasets, "ade", "semantic segmentation, like ADEChallengeData2016")
    parser.set_defaults(make=make_ade, train=400, val=100, size=(256, 192))


def add_imagenet(datasets: argparse._SubParsersAction) -> None:
    """Add the ``imagenet`` command."""
    parser = add_dataset(datasets, "imagenet", "classification, like ImageNet-1K")
    parser.set_defaults(make=make_imagenet, train=800, val=200, size=(224, 168))


def add_dataset(
    datasets: argparse._SubParsersAction, name: str, summary: str
) -> argparse.ArgumentParser:
    """Add a command with what every data set takes; the caller sets the defaults."""
    parser = datasets.add_parser(
        name, help=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("out", metavar="OUT", help="folder to write to")
    parser.add_argument("--train", type=int, metavar="N", help="training images")
    parser.add_argument("--val", type=int, metavar="N", help="validation images")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("W", "H"),
        help="width and height in pixels; about one image in five is turned on its side",
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same data set")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace folders of an earlier data set in OUT"
    )
    return parser


def main() -> None:
    """Make the data set; end with one line and status 1 if that is not possible."""
    args = parse_args()
    try:
        args.make(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
