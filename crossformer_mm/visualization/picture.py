"""The image to look at: as pixels to draw on, and as what the backbone takes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from torch import Tensor

from crossformer_mm.models.crossformer import MIN_IMAGE_SIZE
from crossformer_mm.preprocessor import find_preprocessor, takes_rgb
from crossformer_mm.runner import DataError, NamingPipeline
from crossformer_mm.visualization.errors import VisualizationError


class Picture(NamedTuple):
    """An image in two forms: ``pixels`` (H, W, 3) of uint8, RGB, and ``inputs`` (1, 3, H, W)."""

    pixels: np.ndarray
    inputs: Tensor


def read_picture(path: str | Path, cfg: Config, shape: Sequence[int] | None = None) -> Picture:
    """Read an image and resize and normalise it as the config does for testing.

    What a detector's preprocessor appends at the bottom and right to fill a batch is left out.

    Args:
        path: The image file.
        cfg: A config with a data preprocessor and, if ``shape`` is not given, a test pipeline.
        shape: Height and width in pixels to resize to, instead of what the test pipeline does.

    Raises:
        VisualizationError: If there is no such image, or it cannot be read or resized.
    """
    image = _read_bgr(Path(path))
    image = _run_test_pipeline(path, image, cfg) if shape is None else _resize(image, shape)
    height, width = image.shape[:2]
    if min(height, width) < MIN_IMAGE_SIZE:
        raise VisualizationError(
            f"image {path} is {height} x {width} pixels when resized: give --shape H W, "
            f"at least {MIN_IMAGE_SIZE} {MIN_IMAGE_SIZE}"
        )
    rgb = np.ascontiguousarray(image[..., ::-1])
    return Picture(rgb, _normalise(rgb, find_preprocessor(cfg)))


def _read_bgr(path: Path) -> np.ndarray:
    if not path.is_file():
        raise VisualizationError(f"image {path} does not exist")
    content = np.frombuffer(path.read_bytes(), np.uint8)
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if image is None:
        raise VisualizationError(f"image {path} cannot be read as a picture")
    return image


def _resize(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    height, width = shape
    if min(height, width) < MIN_IMAGE_SIZE:
        raise VisualizationError(
            f"--shape {height} {width}: give height and width, at least {MIN_IMAGE_SIZE}"
        )
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def _run_test_pipeline(path: str | Path, image: np.ndarray, cfg: Config) -> np.ndarray:
    """Apply the transforms between loading and packing."""
    try:
        pipeline = cfg.test_dataloader.dataset.pipeline
    except AttributeError:
        raise VisualizationError("the config has no test pipeline: give --shape H W") from None
    steps = [step for step in pipeline if not str(step["type"]).startswith(("Load", "Pack"))]
    init_default_scope(cfg.get("default_scope", "mmengine"))
    shape = image.shape[:2]
    data = dict(img=image, img_path=str(path), img_shape=shape, ori_shape=shape)
    try:
        return NamingPipeline(Compose(steps))(data)["img"]
    except DataError as error:
        what = " ".join(str(error).split())
        raise VisualizationError(
            f"{what} ({shape[0]} x {shape[1]} pixels): give --shape H W"
        ) from error


def _normalise(rgb: np.ndarray, preprocessor: Mapping) -> Tensor:
    """(H, W, 3) -> (1, 3, H, W), in the order of colours that the model was made for."""
    values = torch.from_numpy(rgb)
    values = (values if takes_rgb(preprocessor) else values.flip(-1)).float()
    if preprocessor.get("mean") is not None:
        values = (values - torch.tensor(preprocessor["mean"])) / torch.tensor(preprocessor["std"])
    return values.permute(2, 0, 1)[None].contiguous()
