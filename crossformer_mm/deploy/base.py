"""What every whole model has: images as they come from a file, and the maps of its neck."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossformer_mm.engine.config import takes_rgb


class Preprocess(nn.Module):
    """What a config's data preprocessor does, with the images in RGB.

    Args:
        settings: Those of the data preprocessor: mean, standard deviation, order of channels, and
            what height and width are padded to a multiple of.
    """

    def __init__(self, settings: Mapping) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(settings.get("mean") or [0.0]).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(settings.get("std") or [1.0]).view(-1, 1, 1))
        self.is_rgb = takes_rgb(settings)
        test_cfg = settings.get("test_cfg") or {}
        self.divisor = settings.get("pad_size_divisor") or test_cfg.get("size_divisor") or 1

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) from 0 to 255 -> normalised float32, padded at the bottom and right.

        Three channels are RGB, others in the order of the config's pipeline.
        """
        is_in_order = self.is_rgb or image.shape[1] != 3
        image = image.float() if is_in_order else image.float().flip(1)
        height, width = image.shape[-2:]
        padding = (0, -width % self.divisor, 0, -height % self.divisor)
        return F.pad((image - self.mean) / self.std, padding)


class WholeModel(nn.Module):
    """A model of mmpretrain, mmseg or mmdet from image to result.

    Args:
        model: In evaluation mode.
        settings: Of the data preprocessor.
    """

    def __init__(self, model: nn.Module, settings: Mapping) -> None:
        super().__init__()
        self.preprocess = Preprocess(settings)
        self.model = model

    def maps(self, image: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the neck, or of the backbone if there is none."""
        maps = self.model.backbone(self.preprocess(image))
        neck = dict(self.model.named_children()).get("neck")
        return maps if neck is None else neck(maps)
