"""What the page of tools/explore.py does: values of its components in, new ones out."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import gradio as gr
import numpy as np

from crossformer_mm.models import CrossFormer
from crossformer_mm.models.attention import GroupedAttention
from crossformer_mm.utils.errors import one_line
from crossformer_mm.visualization.explorer import (
    OWN_RULE,
    TAKES,
    Explorer,
    Place,
    Side,
    describe,
    save,
)

LARGEST = 32  # of the sliders, where the model's own numbers are not larger


class Handlers:
    """Functions of the page. Whatever cannot be used is answered with one line in a box.

    ``values`` are those of a :class:`Place`, whether there are two sides, and of a :class:`Side`.
    """

    def __init__(self, explorer: Explorer, backbone: CrossFormer, folder: Path) -> None:
        self.explorer, self.stages, self.folder = explorer, backbone.layers, folder

    def add_image(self, path: str, names: list) -> tuple[list, gr.Dropdown]:
        """Add an uploaded image to those to choose from, and choose it."""
        names = [*names, (Path(path).name, path)]
        return names, gr.Dropdown(names, value=path)

    def open_image(self, image: str | None) -> tuple[np.ndarray | None, None]:
        """Show the image to click; no pixel of it is chosen yet."""
        try:
            return self.explorer.read_image(image)[0], None
        except Exception:  # the sides say what is wrong with it
            return None, None

    def open_panel(self, compare: bool) -> gr.Column:
        """Show or hide the second side."""
        return gr.Column(visible=compare)

    def take_pixel(self, event: gr.SelectData) -> tuple[int, int]:
        """The row and column of a click."""
        return tuple(event.index[::-1])

    def list_layers(self, stage: int) -> tuple[gr.Dropdown, gr.Dropdown]:
        """List the blocks of a stage and their heads; the last block is chosen."""
        blocks = [
            (f"{index} ({'LDA' if block.long_distance else 'SDA'})", index)
            for index, block in enumerate(self.stages[stage].blocks)
            if isinstance(block.attn, GroupedAttention)
        ]
        heads = list(range(self.stages[stage].blocks[-1].attn.num_heads))
        return gr.Dropdown(blocks, value=blocks[-1][1]), gr.Dropdown(heads, value=0)

    def show(self, number: int, *values: object) -> tuple:
        """The sliders of a side, its picture, and in words what that shows."""
        place, compare, side = read_values(values)
        if number and not compare:
            return (gr.skip(),) * 4
        try:
            picture = self.explorer.draw(side, place)
            said = escape(describe(self.explorer.look(side, place)))
        except Exception as error:  # models raise anything at arguments that they do not take
            picture, said = None, explain(error)
        return *self._set_sliders(place, side), picture, said

    def _set_sliders(self, place: Place, side: Side) -> list[gr.Slider]:
        """Under the model's own rule they show its numbers; else those that a rule takes move."""
        if side.rule != OWN_RULE:
            names = ("group_size", "interval")
            return [gr.Slider(interactive=name in TAKES[side.rule]) for name in names]
        block = self.stages[place.stage].blocks[place.block]
        return [
            gr.Slider(value=own, maximum=max(own, LARGEST), interactive=False)
            for own in (block.group_size, block.interval)
        ]

    def predict(self, number: int, image: str, compare: bool, checkpoint: str) -> tuple:
        """The drawn prediction, or a box that says why there is none."""
        if number and not compare:
            return gr.skip(), gr.skip()
        try:
            picture = self.explorer.predict(checkpoint, image)
        except Exception as error:
            return gr.Image(None, visible=False), gr.HTML(explain(error), visible=True)
        return gr.Image(picture, visible=True), gr.HTML(visible=False)

    def make_files(self, *values: object) -> gr.File:
        """Write the picture and the numbers of each side."""
        place, compare, left, right = read_values(values)
        files = []
        try:
            for name, side in {"left": left, "right": right}.items() if compare else [("", left)]:
                files += save(self.explorer, side, place, self.folder, name)
        except Exception as error:
            gr.Warning(explain(error))
        return gr.File(files or None, visible=bool(files))


def read_values(values: Sequence) -> tuple:
    """Put the values of components together: place, whether there are two sides, and each side."""
    shared, length = len(Place._fields) + 1, len(Side._fields)
    starts = range(shared, len(values), length)
    sides = [_read_side(*values[start : start + length]) for start in starts]
    return Place(*values[: shared - 1]), values[shared - 1], *sides


def _read_side(checkpoint: str, rule: str, *numbers: float | None) -> Side:
    # Beside a slider anything can be typed.
    return Side(checkpoint, rule, *(max(1, int(number or 1)) for number in numbers))


def explain(error: Exception) -> str:
    """Say on the page, as HTML, why something is not there."""
    reason = one_line(str(error)) or type(error).__name__
    return f'<span class="bad">Cannot be shown: {escape(reason)}</span>'
