"""Try a model on images with its library's inferencer: draw what it finds, and write it as JSON.

By its scope the config says whether these are class scores, boxes and masks, or segments.
"""

if __name__ == "__main__":
    from while_loading import end_if_interrupted

    end_if_interrupted()

import argparse
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from glob import glob
from os.path import abspath, commonpath
from pathlib import Path

import cv2
import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from PIL import Image, UnidentifiedImageError
from torch import nn

from crossformer_mm.engine.launch import (
    add_cfg_options,
    check_device,
    check_file,
    fail,
    load_config,
)
from crossformer_mm.engine.trained_model import load_model
from crossformer_mm.utils.errors import CheckpointError
from crossformer_mm.utils.interruption import interruption_in_one_line
from crossformer_mm.utils.io import replace_when_complete

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
VISUALIZER_OF = dict(mmpretrain="Universal", mmdet="DetLocal", mmseg="SegLocal")
Image.MAX_IMAGE_PIXELS = None  # OpenCV has a limit of its own


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    inputs = "image, folder (its images and those below) or quoted glob"
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=inputs)
    parser.add_argument("--config", required=True, help="config file")
    parser.add_argument("--checkpoint", required=True, metavar="CKPT", help="checkpoint file")
    parser.add_argument("--out-dir", required=True, help="folder for pictures and JSON files")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; if not given, a GPU if there is")
    parser.add_argument(
        "--score-thr",
        type=float,
        metavar="S",
        help="draw boxes and masks from this score on; if not given, the one of the config's "
        "visualization hook, or 0.3. JSON files have all",
    )
    add_cfg_options(parser)
    return parser.parse_args()


def find_files(inputs: Sequence[str], out_dir: Path) -> tuple[list[Path], list[str]]:
    """Find the files that inputs stand for, each once, and the inputs that stand for nothing.

    Folders and globs leave out what lies in ``out_dir``.
    """
    files, nothing = [], []
    for given in inputs:
        found = [given] if Path(given).exists() else sorted(glob(given, recursive=True))
        images = [image for each in map(Path, found) for image in images_of(each)]
        if not Path(given).is_file():
            images = [i for i in images if not i.resolve().is_relative_to(out_dir.resolve())]
        files += map(Path, map(abspath, images))
        nothing += [] if images else [given]
    return list(dict.fromkeys(files)), nothing


def images_of(path: Path) -> list[Path]:
    """The images in a folder and below, or the file itself."""
    if not path.is_dir():
        return [path]
    return [f for f in sorted(path.rglob("*")) if f.suffix.lower() in IMAGE_SUFFIXES]


def place_results(files: Sequence[Path], out_dir: Path) -> dict[Path, tuple[Path, Path]]:
    """Choose the picture and the JSON file of each file, below the folder that all of them share.

    So files of the same name in different folders have results in different folders.
    """
    shared = commonpath([file.parent for file in files])
    places = {}
    for file in files:
        name = str(out_dir / file.relative_to(shared))
        keeps_name = file.suffix.lower() in (".jpg", ".jpeg", ".png")
        places[file] = Path(name if keeps_name else f"{name}.png"), Path(f"{name}.json")
    results = [path.resolve() for place in places.values() for path in place]
    if len({file.resolve() for file in files}.union(results)) < 3 * len(files):
        fail(f"--out-dir {out_dir}: a result would replace an input or another result")
    return places


def find_classes(cfg: Config, checkpoint: Mapping, model: nn.Module) -> dict[str, list]:
    """Find names and colours of a model's classes, in the checkpoint or the config's data set.

    Where there are none, classes are called ``class 7`` and colours are random, always the same.
    """
    meta = checkpoint.get("meta") or {}
    meta = meta.get("dataset_meta") or {"CLASSES": meta.get("CLASSES")}  # mmdet 2, mmseg 0
    known = {key.lower(): value for key, value in meta.items() if value}
    with suppress(Exception):  # a data set may need its files to be built
        dataset = {**cfg.test_dataloader.dataset, "lazy_init": True, "pipeline": []}
        known = {**DATASETS.build(dataset).metainfo, **known}
    counts = [getattr(module, "num_classes", None) for module in model.modules()]
    count = max([0, *(count for count in counts if isinstance(count, int))])
    classes = [str(name) for name in known.get("classes") or ()]
    classes += [f"class {label}" for label in range(len(classes), count)]
    palette = known.get("palette")
    if not isinstance(palette, (list, tuple)) or len(palette) != len(classes):
        palette = np.random.RandomState(42).randint(0, 256, (len(classes), 3)).tolist()
    return dict(classes=classes, palette=[tuple(colour) for colour in palette])


def build_inferencer(cfg: Config, model: nn.Module, meta: Mapping) -> object:
    """Build the library's inferencer around a model that has its weights."""
    default = dict(type=f"{VISUALIZER_OF[cfg.default_scope]}Visualizer")
    cfg.visualizer = dict(cfg.get("visualizer") or default, vis_backends=None)
    model._config, model.dataset_meta = cfg, meta
    if cfg.default_scope == "mmpretrain":
        from mmpretrain import ImageClassificationInferencer
        from mmpretrain.utils import progress

        progress.disable_progress_bar = True
        inferencer = ImageClassificationInferencer(model, pretrained=False)
        inferencer.visualizer = VISUALIZERS.build(cfg.visualizer)
        inferencer.visualizer.dataset_meta = meta
        return inferencer
    if cfg.default_scope == "mmdet":
        from mmdet.apis import DetInferencer as Inferencer
    else:
        from mmseg.apis import MMSegInferencer as Inferencer
    # mmengine's own methods build the model again, with weights read in another way, and warn.
    own = dict(_init_model=lambda *args: model, _init_collate=lambda *args: pseudo_collate)
    return type("LoadedInferencer", (Inferencer,), own)(cfg, show_progress=False)


def predict(inferencer: object, scope: str, file: str, score_thr: float) -> tuple[np.ndarray, dict]:
    """Predict on one image: the picture (H, W, 3), blue first, and what the JSON file says."""
    image = read_image(file)
    names = inferencer.model.dataset_meta["classes"]
    record = dict(input=file, width=image.shape[1], height=image.shape[0])
    if scope == "mmpretrain":
        (sample,) = inferencer(file, return_datasamples=True)
        short, long = sorted(image.shape[:2])
        size = max(short, min(224, short * 2000 // long))  # text needs room
        draw = inferencer.visualizer.visualize_cls
        picture = draw(mmcv.bgr2rgb(image), sample, draw_gt=False, resize=size)
        scores = sample.pred_score.tolist()
        best = np.argsort(scores)[: -min(5, len(scores)) - 1 : -1].tolist()
        top = [dict(label=label, name=names[label], score=scores[label]) for label in best]
        record.update(task="classification", top=top, scores=scores)
    elif scope == "mmdet":
        result = inferencer(file, return_vis=True, pred_score_thr=score_thr)
        (picture,), (found,) = result["visualization"], result["predictions"]
        record.update(task="detection", names=[names[label] for label in found["labels"]], **found)
    else:
        result = inferencer(file, return_vis=True)
        picture, labels = result["visualization"], result["predictions"].astype(int)
        present, pixels = np.unique(labels, return_counts=True)
        segments = zip(present.tolist(), (pixels / labels.size).tolist(), strict=True)
        shares = [dict(label=label, name=names[label], share=share) for label, share in segments]
        record.update(task="segmentation", segments=shares)
    if not np.isfinite(record.get("scores", ())).all():
        raise ValueError("the model predicts NaN or infinite scores")
    return mmcv.rgb2bgr(picture), record


def read_image(file: str) -> np.ndarray:
    """Read an image, (H, W, 3), blue first; raise ValueError or OSError if it is none."""
    try:
        with Image.open(file) as image:
            if image.format == "JPEG":  # OpenCV fills a missing end with grey
                image.draft("L", (1, 1))
                image.load()
    except UnidentifiedImageError:
        raise ValueError("it is not an image; of a video, extract the frames first") from None
    pixels = mmcv.imread(file)
    if pixels is None:
        raise ValueError("OpenCV cannot read it")
    return pixels


def try_model(args: argparse.Namespace) -> None:
    """Predict on every input; what cannot be used is named in one line, and the rest goes on."""
    out_dir = Path(args.out_dir)
    files, nothing = find_files(args.inputs, out_dir)
    if not files:
        fail(f"no image is found at {', '.join(nothing)} (results in --out-dir are left out)")
    places = place_results(files, out_dir)
    cfg = load_config(args.config, args.cfg_options)
    if cfg.get("default_scope") not in VISUALIZER_OF or not isinstance(cfg.get("model"), dict):
        fail(f"--config {args.config} needs a model and a default_scope: mmpretrain, mmdet, mmseg")
    device = check_device(args.device or get_device())
    try:
        init_default_scope(cfg.default_scope)
        model, checkpoint, unused = load_model(cfg, args.checkpoint, device)
        inferencer = build_inferencer(cfg, model, find_classes(cfg, checkpoint, model))
    except CheckpointError as error:
        fail(str(error))
    except Exception as error:  # models raise anything at arguments that they do not take
        fail(f"--config {args.config}: no inferencer can be built: {' '.join(str(error).split())}")
    if unused:
        print(f"Checkpoint: {unused}")
    hook = cfg.get("default_hooks", {}).get("visualization", {})
    score_thr = hook.get("score_thr", 0.3) if args.score_thr is None else args.score_thr
    failures = [f"{given}: no image is found there" for given in nothing]
    for file, (picture_file, json_file) in places.items():
        try:
            picture, record = predict(inferencer, cfg.default_scope, str(file), score_thr)
            content = json.dumps(record, allow_nan=False, ensure_ascii=False)
            _, encoded = cv2.imencode(picture_file.suffix, picture)
        except Exception as error:
            failures.append(f"{file}: {' '.join(str(error).split()) or type(error).__name__}")
            continue
        try:
            write(json_file, content.encode())
            write(picture_file, encoded.tobytes())
        except OSError as error:
            fail(f"--out-dir {out_dir}: a result cannot be written: {error}")
        print(f"Wrote {picture_file}")
    for failure in failures:
        print(f"cannot use {failure}", file=sys.stderr)
    if failures:
        fail(f"{len(failures)} of {len(files) + len(nothing)} inputs failed, see above")


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(path) as temporary:
        temporary.write_bytes(content)


def main() -> None:
    """Try a model."""
    args = parse_args()
    check_file(args.checkpoint, "--checkpoint")
    if args.score_thr is not None and not 0 <= args.score_thr <= 1:
        fail(f"--score-thr {args.score_thr}: give a number from 0 to 1")
    # Boxes and outlines at the border of the image are out of bounds by a pixel.
    warnings.filterwarnings("ignore", message=".*out of bounds")
    with interruption_in_one_line(f"what was done is in {args.out_dir}"):
        try_model(args)


if __name__ == "__main__":
    main()
