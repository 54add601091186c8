"""Draw the curves of one or more training runs into one picture: losses, learning rate, metrics.

Each run is a work directory, whose logs are joined if the run was resumed, or one log file
(vis_data/scalars.json). Losses are drawn over iterations, metrics over what the run counts them by.
"""

import argparse

from crossformer_mm.launch import errors_in_one_line
from crossformer_mm.visualization.canvas import check_png, write_png
from crossformer_mm.visualization.curves import choose_labels, choose_panels, draw_curves
from crossformer_mm.visualization.errors import VisualizationError
from crossformer_mm.visualization.training_log import read_run


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="LOG_OR_WORK_DIR", help="one for each run")
    parser.add_argument("--out", required=True, metavar="PNG", help="picture to write")
    parser.add_argument(
        "--keys",
        nargs="+",
        metavar="KEY",
        help="what to draw, such as loss lr 'coco/*'; if not given, loss, learning rate and the "
        "main metrics",
    )
    parser.add_argument("--legend", nargs="+", metavar="NAME", help="a name for each run")
    return parser.parse_args()


def plot(args: argparse.Namespace) -> None:
    """Read the logs and draw."""
    out = check_png(args.out)
    runs = [read_run(path) for path in args.runs]
    for path, run in zip(args.runs, runs, strict=True):
        if run.unreadable:
            print(f"{path}: left out {run.unreadable} unreadable line(s)")
    panels = choose_panels(runs, args.keys)
    write_png(draw_curves(runs, panels, choose_labels(runs, args.runs, args.legend)), out)
    print(f"Wrote {out}: {', '.join(key for key, _ in panels)}")


def main() -> None:
    """Draw, or say in one line why not."""
    args = parse_args()
    with errors_in_one_line(VisualizationError):
        plot(args)


if __name__ == "__main__":
    main()
