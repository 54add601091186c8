"""Look inside a backbone while it sees an image.

groups: which tokens share a group with a chosen one, under SDA and the three rules of LDA.
attention: how much a chosen token attends to the others, for each head.
dpb: the dynamic position bias of each head.
features: the feature maps of the stages.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from crossformer_mm.engine.launch import (
    add_cfg_options,
    check_device,
    check_file,
    errors_in_one_line,
    fail,
    load_config,
)
from crossformer_mm.models.crossformer import MIN_IMAGE_SIZE
from crossformer_mm.utils.errors import CheckpointError
from crossformer_mm.utils.io import replace_when_complete
from crossformer_mm.visualization.attention import AttentionCall, Token, record
from crossformer_mm.visualization.figures import (
    draw_attention,
    draw_bias,
    draw_features,
    draw_groups,
)
from crossformer_mm.visualization.inputs import (
    RANDOM_WEIGHTS,
    InputError,
    build_backbone,
    read_image,
)

KINDS = ("groups", "attention", "dpb", "features")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS, help="what to draw")
    parser.add_argument("image", help="image file")
    parser.add_argument("--config", required=True, help="config file")
    parser.add_argument("--checkpoint", metavar="CKPT", help="weights; random if not given")
    parser.add_argument("--out", required=True, metavar="PNG", help="picture to write")
    parser.add_argument(
        "--stage", type=int, nargs="+", metavar="S", help="stages from 0 to 3; all if not given"
    )
    parser.add_argument(
        "--block", type=int, metavar="B", help="attention, dpb: block; the last two if not given"
    )
    parser.add_argument(
        "--head", type=int, nargs="+", metavar="N", help="attention, dpb: heads; the first six"
    )
    parser.add_argument(
        "--token",
        type=int,
        nargs=2,
        metavar=("Y", "X"),
        help="groups, attention: row and column on the map of the first chosen stage, and the same "
        "place in later stages; the middle if not given",
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="resize the image to this; if not given, as the config's test pipeline does",
    )
    parser.add_argument("--device", default="cpu", help="where the backbone runs, such as cuda")
    add_cfg_options(parser)
    return parser.parse_args()


def visualize(args: argparse.Namespace) -> None:
    """Draw what the command line asks for."""
    if Path(args.out).suffix.lower() != ".png":
        fail(f"--out {args.out} must end with .png")
    if args.shape and min(args.shape) < MIN_IMAGE_SIZE:
        fail(f"--shape {args.shape[0]} {args.shape[1]}: give at least {MIN_IMAGE_SIZE} for each")
    check_file(args.image, "image")
    check_file(args.checkpoint, "--checkpoint")
    device = check_device(args.device)
    cfg = load_config(args.config, args.cfg_options)
    backbone, weights = build_backbone(cfg, args.checkpoint)
    stages = choose_stages(args.stage, backbone.out_indices[-1])
    pixels, inputs = read_image(args.image, cfg, args.shape)
    height, width = pixels.shape[:2]
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]
    tokens = choose_tokens(sizes, stages, args.token)
    if args.kind == "groups":
        write_png(draw_groups(pixels, backbone, sizes, tokens), Path(args.out))
        return
    if weights == RANDOM_WEIGHTS:
        print("No --checkpoint was given: the weights are random")
    try:
        calls, stage_maps = record(backbone.to(device), inputs.to(device))
    except ValueError as error:  # too few channels or pixels
        fail(f"image {args.image}: {error}")
    if args.kind == "features":
        figure = draw_features(pixels, stage_maps, stages, weights)
    else:
        calls = choose_calls(calls, stages, args.block, args.head)
        if args.kind == "attention":
            figure = draw_attention(pixels, calls, tokens, args.head, weights)
        else:
            figure = draw_bias(calls, args.head, weights)
    write_png(figure, Path(args.out))


def choose_stages(stages: Sequence[int] | None, last: int) -> list[int]:
    """Return the chosen stages in rising order, or all that run if none is chosen."""
    for stage in stages or ():
        if not 0 <= stage <= last:
            fail(f"--stage {stage}: this backbone runs stages 0 to {last}")
    return sorted(set(stages or range(last + 1)))


def choose_tokens(
    sizes: Sequence[tuple[int, int]], stages: Sequence[int], token: Sequence[int] | None
) -> dict[int, Token]:
    """Find the token of each chosen stage that covers one place of the image."""
    height, width = sizes[stages[0]]
    row, column = token or (height // 2, width // 2)
    if not (0 <= row < height and 0 <= column < width):
        fail(
            f"--token {row} {column}: the map of stage {stages[0]} has rows 0 to {height - 1} "
            f"and columns 0 to {width - 1}"
        )
    shifts = {stage: stage - stages[0] for stage in stages}
    return {stage: (row >> shift, column >> shift) for stage, shift in shifts.items()}


def choose_calls(
    calls: Sequence[AttentionCall],
    stages: Sequence[int],
    block: int | None,
    heads: Sequence[int] | None,
) -> list[AttentionCall]:
    """Take the calls of some stages: of one block, or of the last two (one SDA, one LDA)."""
    chosen = []
    for stage in stages:
        own = [call for call in calls if call.stage == stage]
        if block is not None and not 0 <= block < len(own):
            fail(f"--block {block}: stage {stage} has blocks 0 to {len(own) - 1}")
        chosen += own[-2:] if block is None else [own[block]]
    most = max(call.layer.num_heads for call in chosen)
    for head in heads or ():
        if not 0 <= head < most:
            fail(f"--head {head}: the chosen blocks have heads 0 to {most - 1}")
    return chosen


def write_png(figure: Figure, out: Path) -> None:
    """Write a figure; the folder is made if need be, and an older file replaced."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replace_when_complete(out) as temporary:
            figure.savefig(temporary, format="png")
    except OSError as error:
        fail(f"--out {out} cannot be written: {error.strerror}")
    print(f"Wrote {out}")


def main() -> None:
    """Draw, or say in one line why not."""
    args = parse_args()
    with errors_in_one_line(CheckpointError, InputError):
        visualize(args)


if __name__ == "__main__":
    main()
