"""What all figures share: a grid of panels, painting tokens over an image, writing a PNG file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from crossformer_mm.visualization.errors import VisualizationError
from crossformer_mm.visualization.groups import Token
from crossformer_mm.whole_files import replace_when_complete

DOTS_PER_INCH = 100
TITLE_SIZE, LABEL_SIZE = 11, 10
MIN_IMAGE_HEIGHT = 0.9  # inches; together with titles, as much as a row's label needs
TOKEN_COLOUR = "#00c8ff"


def make_grid(
    rows: int, columns: int, panel: tuple[float, float], title: str
) -> tuple[Figure, np.ndarray]:
    """Make a figure of equal panels with room for titles.

    Args:
        rows: Panels on top of each other.
        columns: Panels side by side.
        panel: Width and height of a panel in inches, titles included.
        title: Of the whole figure.

    Returns:
        The figure and its axes, (rows, columns).
    """
    size = (columns * panel[0], rows * panel[1] + 0.4)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    figure.suptitle(title, fontsize=TITLE_SIZE, parse_math=False)
    return figure, figure.subplots(rows, columns, squeeze=False)


def panel_size(height: int, width: int, panel_width: float) -> tuple[float, float]:
    """Width and height in inches of a panel for an image of height x width pixels.

    Very long images get less than the whole width or height, and the text around them its place.
    """
    shown_height = min(max(panel_width * height / width, MIN_IMAGE_HEIGHT), 3 * panel_width)
    return panel_width, shown_height + 0.3


def show_image(axes: Axes, image: np.ndarray, title: str) -> None:
    """Draw an image (H, W, 3) or (H, W) without ticks."""
    axes.imshow(image)
    axes.set_title(title, fontsize=LABEL_SIZE)
    axes.set_xticks([])
    axes.set_yticks([])


def label_row(axes: Axes, label: str) -> None:
    """Write a label to the left of a panel."""
    axes.set_ylabel(label, fontsize=LABEL_SIZE)


def pale(pixels: np.ndarray) -> np.ndarray:
    """Make an image (H, W, 3) of uint8 a light grey one, to paint on: (H, W, 3) from 0 to 1."""
    grey = pixels.astype(np.float64).mean(axis=-1, keepdims=True) / 255
    return np.repeat(0.45 + 0.5 * grey, 3, axis=-1)


def spread_tokens(token_map: np.ndarray, stage: int, height: int, width: int) -> np.ndarray:
    """Give every pixel its token's value: (h, w, ...) -> (height, width, ...)."""
    stride = 4 * 2**stage
    return token_map.repeat(stride, axis=0).repeat(stride, axis=1)[:height, :width]


def paint_tokens(
    pixels: np.ndarray, stage: int, colours: np.ndarray, opacity: np.ndarray
) -> np.ndarray:
    """Paint tokens over a pale image.

    Args:
        pixels: (H, W, 3) of uint8.
        stage: Whose map the tokens belong to.
        colours: (h, w, 3) from 0 to 1.
        opacity: (h, w) from 0 to 1.

    Returns:
        (H, W, 3) from 0 to 1.
    """
    height, width = pixels.shape[:2]
    paint = spread_tokens(colours, stage, height, width)
    alpha = spread_tokens(opacity, stage, height, width)[..., None]
    return alpha * paint + (1 - alpha) * pale(pixels)


def mark_token(axes: Axes, token: Token, stage: int) -> None:
    """Draw a ring around what the image in a panel has of a token."""
    stride = 4 * 2**stage
    sides = axes.images[0].get_array().shape[:2]
    row, column = (
        (place * stride + min((place + 1) * stride, side)) / 2 - 0.5
        for place, side in zip(token, sides, strict=True)
    )
    ring = dict(marker="o", ms=9, mfc="none", clip_on=False)
    axes.plot(column, row, **ring, mec="black", mew=3.5)
    axes.plot(column, row, **ring, mec=TOKEN_COLOUR, mew=1.8)


def check_png(out: str) -> Path:
    """Return the path of a picture to write.

    Raises:
        VisualizationError: If it is not the name of a PNG file.
    """
    path = Path(out)
    if path.suffix.lower() != ".png":
        raise VisualizationError(f"--out {out} must end with .png")
    return path


def write_png(figure: Figure, out: Path) -> None:
    """Write a figure; the folder is made if need be, and an older file replaced.

    Raises:
        VisualizationError: If it cannot be written.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # Smaller than what matplotlib writes, which has an opacity for every pixel.
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replace_when_complete(out) as temporary:
            drawn.save(temporary, format="png", optimize=True)
    except OSError as error:
        raise VisualizationError(f"--out {out} cannot be written: {error.strerror}") from error


def blank(panels: Sequence[Axes]) -> None:
    """Leave panels empty."""
    for axes in panels:
        axes.set_axis_off()
