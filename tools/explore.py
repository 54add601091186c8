"""Open a local page to look inside a model: click a point of an image, and see what it attends to.

For a stage, block and head: the tokens in one group with that point, under SDA or any rule of LDA,
the attention to each, the position bias and the feature maps; for one checkpoint or two.
"""

import argparse
import logging
import os
import signal
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from crossformer_mm.engine.cfg_options import add_cfg_options
from crossformer_mm.engine.config import check_file, load_config
from crossformer_mm.models.crossformer import MIN_IMAGE_SIZE
from crossformer_mm.utils.cli import OneLineParser, errors_in_one_line, fail, run
from crossformer_mm.visualization.explorer import Explorer
from crossformer_mm.visualization.inputs import find_images


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("config", help="config file")
    add("checkpoint", help="checkpoint file; the page opens others too")
    add("images", nargs="*", metavar="IMAGE", help="image, folder or quoted glob")
    shape = "resize images to this; if not given, as the config's test pipeline does"
    add("--shape", type=int, nargs=2, metavar=("H", "W"), help=shape)
    port = "of this machine; if not given, the first free one from 7860 on"
    add("--port", type=int, metavar="N", help=port)
    add_cfg_options(parser)
    return parser.parse_args(argv)


def serve(explorer: Explorer, args: argparse.Namespace, images: list[Path], folder: Path) -> None:
    """Serve the page until Ctrl-C, to this machine only."""
    # Gradio reads these when it is imported: no report of its use, no file outside the folder.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(folder))
    for name in ("NO_PROXY", "no_proxy"):  # by which it asks whether its page is there
        os.environ[name] = f"127.0.0.1,{os.environ.get(name, '')}"
    from crossformer_mm.visualization.page import launch

    url = launch(explorer, args.checkpoint, images, folder, args.port)
    print(f"Open {url} in a browser; Ctrl-C ends it", flush=True)
    signal.pause()


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page, or say in one line why not."""
    args = parse_args(argv)
    if find_spec("gradio") is None:
        fail("gradio is not installed: pip install 'crossformer_mm[explore]'")
    if args.shape and min(args.shape) < MIN_IMAGE_SIZE:
        fail(f"--shape {args.shape[0]} {args.shape[1]}: give at least {MIN_IMAGE_SIZE} for each")
    check_file(args.checkpoint, "checkpoint")
    images = []
    for given in args.images:
        found = find_images(given)
        images += found or fail(f"{given}: no image is found there")
    explorer = Explorer(load_config(args.config, args.cfg_options), args.shape)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # of the libraries, which the page has no place for
    with errors_in_one_line(ValueError, OSError), TemporaryDirectory() as folder:
        backbone, _ = explorer.build_backbone(args.checkpoint)  # gradio takes long to import
        if backbone.long_range == "pvt":
            fail(f"config {args.config}: long_range='pvt' has no groups to look into")
        serve(explorer, args, images, Path(folder))


if __name__ == "__main__":
    run(main)
