"""What a config says about the images of its model."""

import json
from pathlib import Path

from mmengine.config import Config

from crossformer_mm.preprocessor import find_preprocessor, takes_rgb


def describe_input(cfg: Config) -> dict[str, str]:
    """What the images of the file must be, from the config's data preprocessor."""
    preprocessor = find_preprocessor(cfg)
    values = dict(
        mean=preprocessor.get("mean", [0, 0, 0]),
        std=preprocessor.get("std", [1, 1, 1]),
        channel_order="RGB" if takes_rgb(preprocessor) else "BGR",
        pad_size_divisor=preprocessor.get("pad_size_divisor", 1),
        config=Path(cfg.filename).name,
    )
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }


def smallest_test_side(cfg: Config) -> int | None:
    """The least side, in pixels, of the images that a config tests, padding included.

    It comes from the last transform that scales or crops. None if no transform does.
    """
    side = None
    for transform in cfg.get("test_pipeline") or []:
        size = transform.get("crop_size") or transform.get("scale")
        if size:
            side = size if isinstance(size, int) else min(size)
    divisor = find_preprocessor(cfg).get("pad_size_divisor") or 1
    return side and -(-side // divisor) * divisor
