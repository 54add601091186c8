"""Pictures of predictions, drawn by the visualizer of the config's library."""

import warnings

import numpy as np
from mmengine.config import Config
from mmengine.registry import VISUALIZERS, DefaultScope
from mmengine.structures import BaseDataElement
from mmengine.visualization import BaseVisBackend

from crossformer_mm.demo.class_names import DatasetMeta

VISUALIZER_TYPES = dict(
    mmpretrain="UniversalVisualizer", mmdet="DetLocalVisualizer", mmseg="SegLocalVisualizer"
)
DEFAULT_SCORE_THR = 0.3
MIN_SIDE_FOR_TEXT = 224  # pixels; mmpretrain's text is illegible on smaller images
MAX_ENLARGED_SIDE = 2000  # pixels


class _PictureKeeper(BaseVisBackend):
    """A place for a visualizer to store its pictures in: it keeps the last one."""

    def __init__(self) -> None:
        self.picture: np.ndarray | None = None

    def _init_env(self) -> None:
        pass

    @property
    def experiment(self) -> "_PictureKeeper":
        return self

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: object) -> None:
        self.picture = image


class Painter:
    """Draws predictions with the config's visualizer.

    Args:
        cfg: The config; without a ``visualizer``, its library's own with its defaults.
        dataset_meta: Names and colours of the classes.
        score_thr: Boxes and masks of lower scores are not drawn. If None, what the config's
            visualization hook says, or 0.3.
    """

    def __init__(
        self, cfg: Config, dataset_meta: DatasetMeta, score_thr: float | None = None
    ) -> None:
        self.scope = cfg.default_scope
        hook = (cfg.get("default_hooks") or {}).get("visualization") or {}
        self.score_thr = (
            hook.get("score_thr", DEFAULT_SCORE_THR) if score_thr is None else score_thr
        )
        self._keeper = _PictureKeeper()
        own = {"type": VISUALIZER_TYPES[self.scope], **(cfg.get("visualizer") or {})}
        own.update(name=f"demo-{id(self)}", vis_backends=[self._keeper], save_dir=None)
        with DefaultScope.overwrite_default_scope(self.scope):
            self._visualizer = VISUALIZERS.build(own)
        self._visualizer.dataset_meta = dict(dataset_meta)

    def draw(self, image: np.ndarray, prediction: BaseDataElement) -> np.ndarray:
        """Draw a prediction over its image; both images are (H, W, 3) bytes, blue first.

        The picture has the size of the image, but for small images of classifiers, which are
        enlarged so that text can be read, as far as their long side allows it.
        """
        with warnings.catch_warnings():
            # Boxes and outlines at the border of the image are out of bounds by a pixel.
            warnings.filterwarnings("ignore", message=".*out of bounds")
            picture = self._draw_rgb(np.ascontiguousarray(image[..., ::-1]), prediction)
        return np.ascontiguousarray(picture[..., ::-1])

    def _draw_rgb(self, image: np.ndarray, prediction: BaseDataElement) -> np.ndarray:
        if self.scope == "mmpretrain":
            size = enlarged_short_side(*image.shape[:2])
            self._visualizer.visualize_cls(image, prediction, draw_gt=False, resize=size)
        else:
            if self.scope == "mmseg":  # it fails on tensors of one element
                prediction = prediction.numpy()
            options = dict(pred_score_thr=self.score_thr) if self.scope == "mmdet" else {}
            self._visualizer.add_datasample("demo", image, prediction, draw_gt=False, **options)
        return self._keeper.picture


def enlarged_short_side(height: int, width: int) -> int | None:
    """To what an image's short side is enlarged for text, in pixels; None if it is not."""
    short, long = sorted((height, width))
    size = min(MIN_SIDE_FOR_TEXT, short * MAX_ENLARGED_SIDE // long)
    return size if size > short else None
