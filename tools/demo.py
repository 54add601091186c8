"""Try a model: predict on images and videos, draw what it finds, and write it as JSON.

By its scope the config says whether these are class scores, boxes and masks, or segments.
"""

if __name__ == "__main__":
    from while_loading import end_if_interrupted

    end_if_interrupted()

import argparse
import sys
from pathlib import Path

from crossformer_mm.demo.building import build_demo, check_arguments, read_config
from crossformer_mm.demo.inputs import find_files
from crossformer_mm.demo.naming import place_results
from crossformer_mm.interruption import interruption_in_one_line
from crossformer_mm.launch import add_cfg_options, fail


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image, video, folder (its images and those below) or quoted glob",
    )
    parser.add_argument("--config", required=True, help="config file")
    parser.add_argument("--checkpoint", required=True, metavar="CKPT", help="checkpoint file")
    parser.add_argument(
        "--out-dir", required=True, metavar="OUT", help="folder for pictures and JSON files"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; if not given, a GPU if there is")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at a time")
    parser.add_argument(
        "--score-thr",
        type=float,
        metavar="S",
        help="draw boxes and masks from this score on; if not given, the one of the config's "
        "visualization hook, or 0.3. JSON files have all",
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Try a model."""
    args = parse_args()
    check_arguments(args)
    with interruption_in_one_line(f"what was done is in {args.out_dir}"):
        try_model(args)


def try_model(args: argparse.Namespace) -> None:
    """Predict on the inputs, and say how many there were."""
    out_dir = Path(args.out_dir)
    files, problems = find_files(args.inputs, out_dir)
    if not files:
        fail(f"INPUT: {'; '.join(problems)}")
    cfg = read_config(args)
    try:
        names = place_results(files, out_dir)
    except FileExistsError as error:
        fail(f"--out-dir {out_dir}: {error}")
    demo = build_demo(args, cfg)
    try:
        with demo.progress:
            demo.run(names)
    except OSError as error:
        fail(f"--out-dir {out_dir}: a result cannot be written: {error}")
    for problem in problems:
        print(problem, file=sys.stderr)
    failed, total = len(demo.failures) + len(problems), len(files) + len(problems)
    print(f"{total - failed} of {total} inputs done; pictures and JSON files are in {out_dir}")
    if failed:
        fail(f"{failed} of {total} inputs failed, see above")


if __name__ == "__main__":
    main()
