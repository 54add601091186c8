"""A config's backbone, and an image as the config's test pipeline prepares it."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from crossformer_mm.datasets.preprocessor import find_preprocessor
from crossformer_mm.models import CrossFormer

RANDOM_WEIGHTS = "random weights"


class InputError(ValueError):
    """A config or an image cannot be used; the message says why."""


def build_backbone(cfg: Config, checkpoint: str | None = None) -> tuple[CrossFormer, str]:
    """Build a config's backbone in evaluation mode.

    Args:
        cfg: Config of a classifier, detector or segmentor.
        checkpoint: File or URL with the weights of such a model or of a backbone. None: what the
            config's ``init_cfg`` names, otherwise random weights, each time the same.

    Returns:
        The backbone, and in a few words where its weights are from.

    Raises:
        InputError: If the config has no CrossFormer backbone, or one that cannot be built.
        CheckpointError: If the checkpoint cannot be read or does not fit.
    """
    model = cfg.get("model")
    found = model.get("backbone") if isinstance(model, dict) else None
    kind = str(found.get("type")) if isinstance(found, dict) else None
    if kind is None or kind.rpartition(".")[2] != CrossFormer.__name__:
        raise InputError(f"config {cfg.filename} has no CrossFormer backbone, but {kind}")
    options = {key: value for key, value in found.items() if key != "type"}
    if checkpoint is not None:
        options["init_cfg"] = dict(type="Pretrained", checkpoint=checkpoint)
    torch.manual_seed(0)
    try:
        backbone = CrossFormer(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"the backbone of config {cfg.filename}: {error}") from error
    backbone.init_weights()
    init_cfg = options.get("init_cfg")
    source = init_cfg.get("checkpoint") if isinstance(init_cfg, dict) else None
    return backbone.eval(), f"weights: {source.rpartition('/')[2]}" if source else RANDOM_WEIGHTS


def read_image(
    path: str, cfg: Config, shape: Sequence[int] | None = None
) -> tuple[np.ndarray, Tensor]:
    """Read an image and prepare it as for testing.

    What a detector's preprocessor appends at the bottom and right to fill a batch is left out.

    Args:
        path: The image file.
        cfg: A config with a test pipeline and a data preprocessor.
        shape: Height and width in pixels to resize to, instead of what the test pipeline does.

    Returns:
        The resized image as it is seen, (H, W, 3) of uint8, RGB, and what the backbone takes of
        it, (1, C, H, W).

    Raises:
        InputError: If the config has no test pipeline, or it fails on the image.
    """
    scope = cfg.get("default_scope", "mmengine")
    init_default_scope(scope)
    try:
        packed = Compose(_test_transforms(cfg, shape))(dict(img_path=path, img_id=0))
        preprocessor = dict(find_preprocessor(cfg))
        if scope == "mmpretrain":
            preprocessor.setdefault("type", "ClsDataPreprocessor")
        with MODELS.switch_scope_and_registry(scope) as registry:
            batch = registry.build(preprocessor)(pseudo_collate([packed]))
    except Exception as error:  # any class of the pipeline may raise anything
        what = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the test pipeline fails on image {path}, try --shape: {what}") from error
    inputs = packed["inputs"]  # (C, H, W), blue first
    bgr = inputs[:3] if len(inputs) >= 3 else inputs[:1].expand(3, -1, -1)
    pixels = bgr.flip(0).permute(1, 2, 0).clamp(0, 255).byte().numpy()
    height, width = pixels.shape[:2]
    return pixels, batch["inputs"][..., :height, :width]


def _test_transforms(cfg: Config, shape: Sequence[int] | None) -> list[dict]:
    """The test pipeline without annotations; with a shape, only loading, resizing and packing."""
    steps = cfg.test_dataloader.dataset.pipeline
    if shape is None:
        return [step for step in steps if "Annotations" not in str(step["type"])]
    resize = dict(type="Resize", scale=(shape[1], shape[0]), keep_ratio=False, interpolation="area")
    return [steps[0], resize, steps[-1]]
