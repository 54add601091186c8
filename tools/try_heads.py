"""Try heads of mmdet, mmseg and mmpretrain over the backbone: a training step and a prediction.

Takes three minutes on a CPU for all; without --out, prints the table that docs/heads.md has.
"""

import argparse
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from crossformer_mm.analysis.heads import HEADS, Head, Trial, try_head
from crossformer_mm.utils.cli import OneLineParser, fail, run
from crossformer_mm.utils.io import atomic_write

BEGIN, END = "<!-- table: tools/try_heads.py -->\n", "<!-- end of table -->"
COLUMNS = ("head", "library's config", "replaced besides the type", "parameters")
COLUMNS += ("training step", "prediction")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("heads", nargs="*", metavar="HEAD", help="names; all heads if not given")
    parser.add_argument("--out", type=Path, metavar="PAGE", help="write all to this page's table")
    args = parser.parse_args(argv)
    names = [head.name for head in HEADS]
    for name in args.heads:
        if name not in names:
            fail(f"there is no head {name!r}: the names are {', '.join(map(repr, names))}")
    if args.out and args.heads:
        fail("--out takes all heads, so name none")
    return args


def make_row(head: Head, trial: Trial) -> str:
    """A line of the table."""
    replaced = {**head.backbone, **head.replaced}
    values = {k: "random" if torch.is_tensor(v) else v for k, v in replaced.items()}
    entries = ", ".join(f"`{name}={value}`" for name, value in values.items())
    cells = (head.name, f"`{head.config}`", entries, f"{trial.params / 1e6:.1f}M", *trial[1:])
    return f"| {' | '.join(cells)} |\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Try the heads and write or print a table."""
    args = parse_args(argv)
    page = args.out.read_text() if args.out and args.out.is_file() else f"{BEGIN}{END}"
    if args.out and (BEGIN not in page or END not in page or not args.out.is_file()):
        fail(f"--out {args.out} is not a page with a line {BEGIN.strip()}")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    table = f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|\n"
    for head in HEADS:
        if head.name in (args.heads or [head.name]):
            row = make_row(head, try_head(head))
            print(row, end="", flush=True)
            table += row
    if args.out:
        before, rest = page.split(BEGIN)
        with atomic_write(args.out) as temporary:
            temporary.write_text(f"{before}{BEGIN}{table}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    run(main)
