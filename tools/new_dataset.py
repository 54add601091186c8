"""Finds out what a data set is and what is wrong with it, and writes configs that train on it.

python tools/new_dataset.py data/cells --model retinanet mask-rcnn
python tools/new_dataset.py data/cells --copy-fixed data/cells-fixed
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from crossformer_mm.datasets.own.checks import check
from crossformer_mm.datasets.own.configs import write_configs
from crossformer_mm.datasets.own.fix import copy_fixed
from crossformer_mm.datasets.own.heads import MODELS
from crossformer_mm.datasets.own.recognise import read_dataset
from crossformer_mm.datasets.own.records import OwnDataset
from crossformer_mm.datasets.own.splits import with_validation
from crossformer_mm.datasets.own.summary import describe
from crossformer_mm.utils.cli import OneLineParser, errors_in_one_line, fail, run, say
from crossformer_mm.visualization.contact_sheet import draw_contact_sheet


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("data", type=Path, help="folder of the data set, which stays as it is")
    add("--model", nargs="+", choices=MODELS, default=[], help="heads to write a config for")
    add("--name", help="name of the configs' folder; else that of the data")
    add("--out", type=Path, default=Path("configs/own"), help="where that folder is")
    add("--copy-fixed", type=Path, metavar="DIR", help="only write a corrected copy there")
    add("--seed", type=int, default=0, help="of the validation split and the contact sheet")
    return parser.parse_args(argv)


def read_checked(root: Path) -> tuple[OwnDataset, int]:
    """Read a data set and print what it is and what is wrong; also return how many errors."""
    dataset = read_dataset(root)
    findings = check(dataset)
    errors = [finding for finding in findings if finding.is_error]
    warnings = [finding for finding in findings if not finding.is_error]
    say(*describe(dataset), "", f"errors: {len(errors)}", *map(str, errors))
    say("", f"warnings: {len(warnings)}", *map(str, warnings))
    return dataset, len(errors)


def write_copy(dataset: OwnDataset, out: Path) -> None:
    """Write a corrected copy and check it; say what was changed and how to go on."""
    changes = copy_fixed(dataset, out)
    say("", f"changes: {len(changes)}", *map(str, changes), "", f"The copy in {out}:")
    _, errors = read_checked(out)
    if errors:
        fail(f"{out} has errors left ({errors}): correct them by hand")
    say("", "Go on with", f"python tools/new_dataset.py {shlex.quote(str(out))}")


def write(dataset: OwnDataset, models: Sequence[str], folder: Path, seed: int) -> None:
    """Write configs, annotation files and contact sheet; say how to train and test."""
    dataset, split = with_validation(dataset, seed=seed)
    written, sheet = write_configs(dataset, models, folder), folder / "contact_sheet.png"
    if not sheet.exists():
        draw_contact_sheet(dataset, sheet, seed=seed)
        written.append(sheet)
    paths = str(written[0]), f"work_dirs/{folder.name}/{written[0].stem}"
    config, work_dir = map(shlex.quote, paths)
    say("", str(split), "Wrote", *map(str, written), "", f"Look at {sheet}, then train and test:")
    say(f"python tools/train.py {config} --pretrained crossformer-s.pth")
    say(f"python tools/test.py {config} {work_dir}/best_*.pth")


def main(argv: Sequence[str] | None = None) -> None:
    """Check, then write; one line and status 1 if that is not possible."""
    args = parse_args(argv)
    with errors_in_one_line(ValueError, OSError):
        dataset, errors = read_checked(args.data)
        if args.copy_fixed:
            write_copy(dataset, args.copy_fixed)
        elif errors:
            advice = "correct them, or have a corrected copy written with --copy-fixed DIR"
            fail(f"{args.data} has errors ({errors}), so nothing was written: {advice}")
        else:
            folder = args.out / (args.name or args.data.absolute().name)
            write(dataset, args.model, folder, args.seed)


if __name__ == "__main__":
    run(main)
