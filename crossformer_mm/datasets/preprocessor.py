"""What a config's data preprocessor makes of images."""

from collections.abc import Mapping

from mmengine.config import Config


def find_preprocessor(cfg: Config) -> Mapping:
    """Return the settings of the data preprocessor, which are the model's or the config's own."""
    return cfg.model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}


def takes_rgb(preprocessor: Mapping) -> bool:
    """Whether the model gets red first; mmpretrain has another name for it."""
    return bool(preprocessor.get("bgr_to_rgb") or preprocessor.get("to_rgb"))
