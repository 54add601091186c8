"""Convert a checkpoint of the authors to the layout of mmpretrain, mmdet and mmseg.

Classifiers, backbones, detectors and segmentors are recognised by what they hold, and compared
with the model before anything is written. No code in the file is run.
"""

import argparse
from pathlib import Path

from crossformer_mm.checkpoints.convert import convert_checkpoint
from crossformer_mm.utils.errors import CheckpointError


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
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
    return parser.parse_args()


def main() -> None:
    """Convert."""
    args = parse_args()
    cfg = None
    if args.config is not None:
        # Imported here: it imports mmengine's runner.
        from crossformer_mm.engine.launch import load_config

        cfg = load_config(args.config)
    try:
        lines = convert_checkpoint(args.src, args.dst, args.arch, cfg)
    except (CheckpointError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print("\n".join(lines))


if __name__ == "__main__":
    main()
