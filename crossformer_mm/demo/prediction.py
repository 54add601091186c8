"""Images through a config's test pipeline and its model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from PIL import Image, UnidentifiedImageError
from torch import nn

from crossformer_mm.demo.class_names import innermost_dataset
from crossformer_mm.runner import DataError, NamingPipeline

LOADER = "LoadImageFromFile"
# They read the truth, which images to try a model on do not have.
TRUTH_TRANSFORMS = ("LoadAnnotations", "CheckSegLabels")


class UnusableError(RuntimeError):
    """A file is no image or video to predict on; the message says why, but not which file."""


@dataclass
class Sample:
    """An image, ready for the model.

    Attributes:
        path: The image's file, or the video's.
        image: As it was loaded, (H, W, 3) bytes in the order blue, green, red.
        packed: What the test pipeline made of it: ``'inputs'`` and ``'data_samples'``.
    """

    path: Path
    image: np.ndarray
    packed: dict

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of what the model gets."""
        return tuple(self.packed["inputs"].shape[-2:])


class Predictor:
    """A model and the test pipeline of its config.

    Args:
        cfg: The config, with a ``default_scope``.
        model: Its model, in evaluation mode.

    Raises:
        ValueError: If the config's test pipeline does not begin with ``LoadImageFromFile``.
    """

    def __init__(self, cfg: Config, model: nn.Module) -> None:
        steps = [
            step
            for step in innermost_dataset(cfg).get("pipeline", [])
            if _type_of(step) not in TRUTH_TRANSFORMS
        ]
        if not steps or _type_of(steps[0]) != LOADER:
            raise ValueError(f"test_dataloader.dataset.pipeline does not begin with {LOADER}")
        self.model = model
        self.scope = cfg.default_scope
        with DefaultScope.overwrite_default_scope(self.scope):
            self.load = Compose(steps[:1])
            self.prepare = NamingPipeline(Compose(steps[1:]))

    def read_image(self, path: Path) -> Sample:
        """Load an image file.

        Raises:
            UnusableError: If it cannot be loaded, or the test pipeline fails on it.
        """
        if not path.is_file():
            raise UnusableError("there is no such file")
        if path.stat().st_size == 0:
            raise UnusableError("the file is empty")
        if _is_cut_jpeg(path):
            raise UnusableError("the image is cut off: its end is missing")
        try:
            loaded = self.load(dict(img_path=str(path)))
        except OSError as error:
            raise UnusableError(error.strerror or str(error)) from error
        except Exception as error:
            raise UnusableError("it is not an image that OpenCV can read") from error
        return self.prepare_image(path, loaded["img"])

    def prepare_image(self, path: Path, image: np.ndarray) -> Sample:
        """Prepare an image for the model.

        Args:
            path: Where it comes from.
            image: (H, W, 3), blue first.

        Raises:
            UnusableError: If the test pipeline fails on it.
        """
        shape = image.shape[:2]
        data = dict(img=image, img_path=str(path), img_shape=shape, ori_shape=shape, img_id=0)
        try:
            with DefaultScope.overwrite_default_scope(self.scope):
                packed = self.prepare(data)
        except DataError as error:
            what = " ".join(str(error).replace(f" on image {path}", "").split())
            raise UnusableError(f"{shape[1]} x {shape[0]} pixels do not suit: {what}") from error
        return Sample(path, np.clip(image, 0, 255).astype(np.uint8), packed)

    @torch.no_grad()
    def predict(self, samples: Sequence[Sample]) -> list[BaseDataElement]:
        """Predict on samples of the same ``input_size``; results in the CPU's memory."""
        with DefaultScope.overwrite_default_scope(self.scope):
            results = self.model.test_step(pseudo_collate([sample.packed for sample in samples]))
        return [result.cpu() for result in results]


def _is_cut_jpeg(path: Path) -> bool:
    """Whether a JPEG file ends early, which OpenCV reads with grey in the place of the rest."""
    try:
        with Image.open(path) as image:
            if image.format == "JPEG":
                image.draft("L", (1, 1))  # an eighth of the size takes less time, and all the file
                image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return False
    except OSError:
        return True
    return False


def _type_of(step: Mapping) -> str:
    """The name of a transform, without the library in front."""
    kind = step["type"]
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__
