"""A config's backbone, and an image as the config's test pipeline prepares it."""

from collections.abc import Sequence
from glob import glob
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from crossformer_mm.checkpoints.loader import checking_values
from crossformer_mm.datasets.checked_pipeline import check_image_file
from crossformer_mm.engine.config import find_preprocessor, type_name
from crossformer_mm.models import CrossFormer
from crossformer_mm.utils.errors import mask_secrets, one_line

RANDOM_WEIGHTS = "random weights"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


class InputError(ValueError):
    """A config or an image cannot be used; the message says why."""


def find_images(given: str) -> list[Path]:
    """A file itself, or the images of a folder, also below it, or of a glob."""
    path = Path(given)
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    matches = glob(given, recursive=True)
    return sorted(image for match in matches for image in find_images(match))


def build_backbone(cfg: Config, checkpoint: str | None = None) -> tuple[CrossFormer, str]:
    """Build a config's backbone in evaluation mode.

    ``checkpoint`` is a file or URL with the weights of a model or backbone. If it is None, they are
    what the config's ``init_cfg`` names, or else random, each time the same. The second result says
    in a few words where they are from. Raises InputError or CheckpointError.
    """
    model = cfg.get("model")
    options = dict(model.get("backbone") or {}) if isinstance(model, dict) else {}
    kind = type_name(options)
    if kind != CrossFormer.__name__:
        raise InputError(f"config {cfg.filename} has no CrossFormer backbone, but {kind}")
    del options["type"]
    if checkpoint is not None:
        options["init_cfg"] = dict(type="Pretrained", checkpoint=checkpoint)
    torch.manual_seed(0)
    try:
        backbone = CrossFormer(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"the backbone of config {cfg.filename}: {error}") from error
    with checking_values(cfg.get("check_weights", True)):
        backbone.init_weights()
    source = (options.get("init_cfg") or {}).get("checkpoint")
    name = source and mask_secrets(source).rpartition("/")[2]
    return backbone.eval(), f"weights: {name}" if source else RANDOM_WEIGHTS


def read_image(
    path: str, cfg: Config, shape: Sequence[int] | None = None
) -> tuple[np.ndarray, Tensor]:
    """Read an image and prepare it as the config's test pipeline and data preprocessor do.

    ``shape`` is a height and width to resize to, instead of what the test pipeline does.

    Returns:
        The resized image as it is seen, (H, W, 3) of uint8, RGB, and what the backbone takes of
        it, (1, C, H, W), without what fills a batch at the bottom and right.
    """
    scope = cfg.get("default_scope", "mmengine")
    init_default_scope(scope)
    try:
        check_image_file(path)
        steps = cfg.test_dataloader.dataset.pipeline
        steps = [step for step in steps if "Annotations" not in str(step["type"])]
        if shape is not None:
            resize = dict(type="Resize", scale=(shape[1], shape[0]), keep_ratio=False)
            steps = [steps[0], dict(resize, interpolation="area"), steps[-1]]
        packed = Compose(steps)(dict(img_path=path, img_id=0))
        preprocessor = dict(find_preprocessor(cfg))
        if scope == "mmpretrain":
            preprocessor.setdefault("type", "ClsDataPreprocessor")
        with MODELS.switch_scope_and_registry(scope) as registry:
            batch = registry.build(preprocessor)(pseudo_collate([packed]))
    except Exception as error:  # any class of the pipeline may raise anything
        what = one_line(str(error) or type(error).__name__)
        raise InputError(f"the test pipeline fails on image {path}, try --shape: {what}") from error
    inputs = packed["inputs"]  # (C, H, W), blue first
    bgr = torch.cat([inputs] * 3)[:3]  # of 1, 3 or more
    pixels = bgr.flip(0).permute(1, 2, 0).clamp(0, 255).byte().numpy()
    return pixels, batch["inputs"][..., : pixels.shape[0], : pixels.shape[1]]
