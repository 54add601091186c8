"""What a click on an image shows of one layer: computed once for a checkpoint and an image.

Hooks record the input of every attention layer while the network runs; groups and attention of any
token, under the layer's own rule or another, are computed from that.
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmengine.config import Config
from mmengine.visualization.utils import img_from_canvas
from PIL import Image

from crossformer_mm.checkpoints.loader import load_model
from crossformer_mm.utils.io import atomic_write
from crossformer_mm.visualization.attention import (
    AttentionCall,
    Recording,
    Token,
    attention_of_token,
    bias_table,
    group_of_token,
    plan_by_rule,
    record,
)
from crossformer_mm.visualization.figures import draw_channels, draw_token
from crossformer_mm.visualization.inputs import InputError, build_backbone, read_image
from crossformer_mm.visualization.prediction import build_inferencer, predict

OWN_RULE = "the model's own"
# What each of RULES takes besides the map's size; SDA or LDA, very small maps take a group size.
TAKES = {
    "SDA": {"group_size"},
    "LDA fixed_interval": {"interval"},
    "LDA fixed_group": {"group_size", "interval"},
    "LDA adaptive_interval": {"group_size"},
}
OTHER_RULE = "This is the layer under another rule, on the tokens recorded under the model's own."
SCORE_THR = 0.3  # of the boxes that are drawn, as tools/demo.py has it
KEPT = 2  # checkpoints and images whose results stay in memory: those of two sides to compare


class Side(NamedTuple):
    """A checkpoint, and one of ``RULES`` or :data:`OWN_RULE` with its group size and interval."""

    checkpoint: str
    rule: str = OWN_RULE
    group_size: int = 1
    interval: int = 1


class Place(NamedTuple):
    """Where to look: a pixel's row and column, or None for the middle, and the layer and head."""

    image: str
    pixel: tuple[int, int] | None
    stage: int
    block: int
    head: int


class Look(NamedTuple):
    """What is seen there. ``call`` is under the side's rule, which may not be the layer's own."""

    call: AttentionCall
    has_own_groups: bool
    pixel: tuple[int, int]
    token: Token
    head: int
    weights: str
    recording: Recording


class Explorer:
    """A config's model with any checkpoint on any image; results of the last ones are kept.

    ``shape`` is as in :func:`read_image`. Every method raises ValueError or OSError, with one line,
    at a checkpoint or an image that cannot be used; :meth:`predict` any error.
    """

    def __init__(self, cfg: Config, shape: Sequence[int] | None = None) -> None:
        self.cfg = cfg
        keep = lru_cache(KEPT)
        self.read_image = keep(partial(self._read_image, shape=shape))
        self.build_backbone = keep(partial(build_backbone, cfg))
        self.build_inferencer = keep(self._build_inferencer)
        self.record = keep(self._record)
        self.draw_channels = lru_cache(4 * KEPT)(self._draw_channels)
        self.predict = keep(self._predict)

    def look(self, side: Side, place: Place) -> Look:
        """Find the token that covers a pixel, and its layer under the side's rule."""
        recording = self.record(side.checkpoint, place.image)
        backbone, weights = self.build_backbone(side.checkpoint)
        call = own = find_call(recording, place.stage, place.block)
        if side.rule != OWN_RULE:
            mode = backbone.layers[call.stage].blocks[call.block].lda_mode
            size = own.x.shape[1:3]
            plan = plan_by_rule(side.rule, size, side.group_size, side.interval, mode)
            call = own._replace(plan=plan, long_distance=side.rule != "SDA")
        pixels, _ = self.read_image(place.image)
        pixel = place.pixel or (pixels.shape[0] // 2, pixels.shape[1] // 2)
        token = tuple(index // stride_of(call) for index in pixel)
        head = min(place.head, call.layer.num_heads - 1)
        is_own = call.plan == own.plan
        return Look(call, is_own, pixel, token, head, weights, recording)

    def draw(self, side: Side, place: Place) -> np.ndarray:
        """Draw what is seen: (height, width, 3) of uint8, RGB."""
        look, (pixels, _) = self.look(side, place), self.read_image(place.image)
        channels = self.draw_channels(side.checkpoint, place.image, place.stage)
        figure = draw_token(pixels, look.call, look.token, look.head, channels, look.weights)
        return img_from_canvas(FigureCanvasAgg(figure))

    def _read_image(self, path: str | None, shape: Sequence[int] | None) -> tuple:
        if path is None:
            raise InputError("no image is open yet")
        return read_image(path, self.cfg, shape)

    def _record(self, checkpoint: str, image: str) -> Recording:
        return record(self.build_backbone(checkpoint)[0], self.read_image(image)[1])

    def _draw_channels(self, checkpoint: str, image: str, stage: int) -> np.ndarray:
        shape = self.read_image(image)[0].shape
        return draw_channels(self.record(checkpoint, image).stage_maps[stage], shape)

    def _build_inferencer(self, checkpoint: str) -> object:
        model, content, _ = load_model(self.cfg, checkpoint, torch.device("cpu"))
        return build_inferencer(deepcopy(self.cfg), model, content)

    def _predict(self, checkpoint: str, image: str) -> np.ndarray:
        self.read_image(image)  # whose errors are in plain words
        color_type = self.cfg.test_dataloader.dataset.pipeline[0].get("color_type", "color")
        inferencer = self.build_inferencer(checkpoint)
        return predict(inferencer, Path(image), color_type, SCORE_THR)[0]


def find_call(recording: Recording, stage: int, block: int) -> AttentionCall:
    """The call of a block, or of the stage's last one if it has no such block."""
    calls = [call for call in recording.calls if call.stage == stage]
    return next((call for call in calls if call.block == block), calls[-1])


def stride_of(call: AttentionCall) -> int:
    """Pixels of a token's side."""
    return 4 * 2**call.stage


def describe(look: Look) -> str:
    """Say in words, with sizes in pixels and tokens, what is seen."""
    plan, stride = look.call.plan, stride_of(look.call)
    (y, x), (row, column) = look.pixel, look.token
    tokens, distance = int(group_of_token(plan, look.token).sum()), "adjacent"
    if plan.interval > 1:
        distance = f"{plan.interval} tokens ({plan.interval * stride} pixels) apart"
    lines = [
        f"Pixel: row {y}, column {x}. Token: row {row}, column {column} of {plan.height} x "
        f"{plan.width}, each {stride} x {stride} pixels.",
        f"Its group: {tokens} tokens, {distance}, at most {plan.group_height} x "
        f"{plan.group_width}.",
    ]
    if not look.has_own_groups:
        lines.append(OTHER_RULE)
    return "\n".join(lines)


def numbers(look: Look) -> dict[str, np.ndarray]:
    """What the picture shows, of all heads and channels.

    ``group`` (H, W), ``attention`` (heads, H, W), ``bias`` by offset, query minus key (heads,
    2 * rows - 1, 2 * columns - 1), ``stage_map`` (C, H, W), and the whole numbers that say where.
    """
    call = look.call
    return dict(
        group=group_of_token(call.plan, look.token).numpy(),
        attention=attention_of_token(call, look.token).numpy(),
        bias=bias_table(call).numpy(),
        stage_map=look.recording.stage_maps[call.stage][0].permute(2, 0, 1).numpy(),
        **dict(stage=call.stage, block=call.block, head=look.head),
        **dict(pixel=look.pixel, token=look.token, **call.plan._asdict()),
    )


def save(explorer: Explorer, side: Side, place: Place, folder: Path, name: str) -> list[str]:
    """Write the picture as PNG and its numbers as npz; returns the files, which begin with a name.

    They replace those of the same name, checkpoint, layer, head and token.
    """
    look = explorer.look(side, place)
    layer = f"stage{place.stage}-block{look.call.block}-head{look.head}"
    token = f"token{look.token[0]}x{look.token[1]}"
    stem = "-".join(filter(None, (name, Path(side.checkpoint).stem, layer, token)))
    picture, arrays = folder / f"{stem}.png", folder / f"{stem}.npz"
    with atomic_write(picture) as temporary:
        Image.fromarray(explorer.draw(side, place)).save(temporary, format="PNG")
    with atomic_write(arrays) as temporary, temporary.open("wb") as file:
        np.savez(file, **numbers(look))
    return [str(picture), str(arrays)]
