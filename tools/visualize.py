"""Look inside a backbone while it sees an image.

groups: which tokens share a group with a chosen one, under SDA and the three rules of LDA.
attention: how much a chosen token attends to the others, for each head.
dpb: the dynamic position bias of each head.
features: the feature maps of the stages.
"""

import argparse

from crossformer_mm.launch import (
    add_cfg_options,
    check_device,
    check_file,
    errors_in_one_line,
    load_config,
)
from crossformer_mm.safe_load import CheckpointError
from crossformer_mm.visualization.backbone import RANDOM_WEIGHTS, build_backbone
from crossformer_mm.visualization.canvas import check_png, write_png
from crossformer_mm.visualization.errors import VisualizationError
from crossformer_mm.visualization.figures import (
    draw_attention,
    draw_bias,
    draw_features,
    draw_groups,
)
from crossformer_mm.visualization.groups import choose_tokens, map_sizes
from crossformer_mm.visualization.picture import read_picture
from crossformer_mm.visualization.recording import (
    check_heads,
    check_stages,
    choose_calls,
    record,
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
    out = check_png(args.out)
    check_file(args.checkpoint, "--checkpoint")
    device = check_device(args.device)
    cfg = load_config(args.config, args.cfg_options)
    backbone, weights = build_backbone(cfg, args.checkpoint)
    stages = check_stages(backbone, args.stage)
    pixels, inputs = read_picture(args.image, cfg, args.shape)
    tokens = choose_tokens(map_sizes(*pixels.shape[:2]), stages, args.token)
    if args.kind == "groups":
        figure = draw_groups(pixels, backbone, tokens)
    else:
        if weights == RANDOM_WEIGHTS:
            print("No --checkpoint was given: the weights are random")
        calls, stage_maps = record(backbone.to(device), inputs.to(device))
        if args.kind == "features":
            figure = draw_features(pixels, stage_maps, stages, weights)
        else:
            calls = choose_calls(calls, stages, args.block)
            check_heads(calls, args.head)
            if args.kind == "attention":
                figure = draw_attention(pixels, calls, tokens, args.head, weights)
            else:
                figure = draw_bias(calls, args.head, weights)
    write_png(figure, out)
    print(f"Wrote {out}")


def main() -> None:
    """Draw, or say in one line why not."""
    args = parse_args()
    with errors_in_one_line(CheckpointError, VisualizationError):
        visualize(args)


if __name__ == "__main__":
    main()
