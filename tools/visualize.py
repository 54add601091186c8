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
from mmengine.config import Config

from crossformer_mm.engine.cfg_options import add_cfg_options
from crossformer_mm.engine.config import check_device, check_file, load_config
from crossformer_mm.models.crossformer import MIN_IMAGE_SIZE
from crossformer_mm.utils.cli import OneLineParser, errors_in_one_line, fail, run, say
from crossformer_mm.utils.errors import CheckpointError
from crossformer_mm.utils.io import atomic_write
from crossformer_mm.visualization import figures, inputs
from crossformer_mm.visualization.attention import AttentionCall, Token, record


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("kind", choices=("groups", "attention", "dpb", "features"), help="what to draw")
    add("image", help="image file")
    add("--config", required=True, help="config file")
    add("--checkpoint", metavar="CKPT", help="weights; random if not given")
    add("--out", required=True, metavar="PNG", type=Path, help="picture to write")
    add("--stage", type=int, nargs="+", metavar="S", help="stages from 0 to 3; all if not given")
    add("--block", type=int, metavar="B", help="attention, dpb: block; else the last two")
    add("--head", type=int, nargs="+", metavar="N", help="attention, dpb: heads; the first six")
    token = "groups, attention: row and column on the map of the first stage; else the middle"
    add("--token", type=int, nargs=2, metavar=("Y", "X"), help=token)
    shape = "resize the image to this; if not given, as the config's test pipeline does"
    add("--shape", type=int, nargs=2, metavar=("H", "W"), help=shape)
    add("--device", default="cpu", help="where the backbone runs, such as cuda")
    add_cfg_options(parser)
    return parser.parse_args(argv)


def draw(args: argparse.Namespace, cfg: Config) -> Figure:
    """Draw what the command line asks for."""
    backbone, weights = inputs.build_backbone(cfg, args.checkpoint)
    last = backbone.out_indices[-1]
    stages = sorted(set(args.stage or range(last + 1)))
    if wrong := set(stages) - set(range(last + 1)):
        fail(f"--stage {min(wrong)}: this backbone runs stages 0 to {last}")
    if backbone.long_range == "pvt" and args.kind != "features":
        fail(f"{args.kind}: long_range='pvt' has no groups and no bias; draw features instead")
    pixels, image = inputs.read_image(args.image, cfg, args.shape)
    sizes = [tuple(-(-side // 2**n) for side in pixels.shape[:2]) for n in (2, 3, 4, 5)]
    tokens = choose_tokens(sizes, stages, args.token)
    if args.kind == "groups":
        return figures.draw_groups(pixels, backbone, sizes, tokens)
    if weights == inputs.RANDOM_WEIGHTS:
        print("No --checkpoint was given: the weights are random")
    device = check_device(args.device)
    try:
        calls, stage_maps = record(backbone.to(device), image.to(device))
    except ValueError as error:  # too few channels or pixels
        fail(f"image {args.image}: {error}")
    if args.kind == "features":
        return figures.draw_features(pixels, stage_maps, stages, weights)
    calls = choose_calls(calls, stages, args.block, args.head)
    if args.kind == "dpb":
        return figures.draw_bias(calls, args.head, weights)
    return figures.draw_attention(pixels, calls, tokens, args.head, weights)


def choose_tokens(
    sizes: Sequence[Token], stages: Sequence[int], token: Sequence[int] | None
) -> dict[int, Token]:
    """Find the token of each chosen stage that covers one place of the image."""
    height, width = sizes[stages[0]]
    row, column = token or (height // 2, width // 2)
    if not (0 <= row < height and 0 <= column < width):
        fail(
            f"--token {row} {column}: the map of stage {stages[0]} has rows 0 to {height - 1} "
            f"and columns 0 to {width - 1}"
        )
    return {stage: (row >> stage - stages[0], column >> stage - stages[0]) for stage in stages}


def choose_calls(
    calls: figures.Calls, stages: Sequence[int], block: int | None, heads: figures.Heads
) -> list[AttentionCall]:
    """Take the calls of some stages: of one block, or of the last two (one SDA, one LDA)."""
    chosen = []
    for stage in stages:
        own = [call for call in calls if call.stage == stage]
        if block is not None and not 0 <= block < len(own):
            fail(f"--block {block}: stage {stage} has blocks 0 to {len(own) - 1}")
        chosen += own[-2:] if block is None else [own[block]]
    most = max(call.layer.num_heads for call in chosen)
    if wrong := set(heads or ()) - set(range(most)):
        fail(f"--head {min(wrong)}: the chosen blocks have heads 0 to {most - 1}")
    return [call for call in chosen if not heads or min(heads) < call.layer.num_heads]


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, or say in one line why not."""
    args = parse_args(argv)
    if args.out.suffix.lower() != ".png":
        fail(f"--out {args.out} must end with .png")
    if args.shape and min(args.shape) < MIN_IMAGE_SIZE:
        fail(f"--shape {args.shape[0]} {args.shape[1]}: give at least {MIN_IMAGE_SIZE} for each")
    check_file(args.image, "image")
    check_file(args.checkpoint, "--checkpoint")
    with errors_in_one_line(CheckpointError, inputs.InputError):
        figure = draw(args, load_config(args.config, args.cfg_options))
    with errors_in_one_line(OSError):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(args.out) as temporary:
            figure.savefig(temporary, format="png")
    say(f"Wrote {args.out}")


if __name__ == "__main__":
    run(main)
