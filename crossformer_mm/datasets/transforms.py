"""Transforms that the configs add to the libraries' own."""

import numpy as np
from mmengine.registry import TRANSFORMS


@TRANSFORMS.register_module()
class CheckSegLabels:
    """Refuse label maps that no loss or metric can use, right after they are loaded.

    The libraries would count a label outside the classes as none in testing, and end training with
    an index error that names no file. Without labels, nothing is checked.

    Labels are 0 to ``num_classes - 1`` of ``results``, after ``reduce_zero_label``: this project's
    tools set it to the number of the data set's classes. Elsewhere only the size is checked.

    Args:
        ignore_index: The one other label that may occur.
    """

    def __init__(self, ignore_index: int = 255) -> None:
        self.ignore_index = ignore_index

    def __call__(self, results: dict) -> dict:
        """Raise ValueError if ``gt_seg_map``, (H, W) integers, does not fit image or classes."""
        if "gt_seg_map" not in results:
            return results
        labels, what = results["gt_seg_map"], f"label map {results['seg_map_path']}"
        size = tuple(results["ori_shape"][:2])
        if labels.shape != size:
            image = f"its image {results['img_path']} is {size}"
            colours = "; colours are no labels" * (labels.ndim > 2)
            raise ValueError(f"{what} is {labels.shape}, but {image} (height, width){colours}")
        num_classes = results.get("num_classes")
        if num_classes is None:
            return results
        is_wrong = (labels >= num_classes) & (labels != self.ignore_index)
        if is_wrong.any():
            wrong = np.unique(labels[is_wrong]).tolist()
            shift = " after reduce_zero_label" if results.get("reduce_zero_label") else ""
            raise ValueError(
                f"{what} has the labels {wrong}{shift}, but classes are 0 to "
                f"{num_classes - 1} and {self.ignore_index} is ignored"
            )
        return results

    def __repr__(self) -> str:
        return f"CheckSegLabels(ignore_index={self.ignore_index})"


@TRANSFORMS.register_module()
class Letterbox:
    """Resize an image to fit into one size, and fill what is left at the bottom and right.

    Sets what mmdet and mmseg need to bring their results back to the image: ``scale_factor``,
    ``img_shape`` and ``padding_size`` (left, right, top, bottom).

    Args:
        size: Height and width, in pixels.
        fill: The colour of what is left, in the image's order of channels.
    """

    def __init__(self, size: tuple[int, int], fill: tuple[int, ...] = (0, 0, 0)) -> None:
        self.size, self.fill = tuple(size), tuple(fill)

    def __call__(self, results: dict) -> dict:
        """Change ``img`` (H, W, C)."""
        import mmcv  # not on the backbone's path

        before, (height, width) = results["img"].shape, self.size
        image = mmcv.imrescale(results["img"], min(height / before[0], width / before[1]))
        rows, columns = image.shape[:2]
        fill = self.fill[0] if image.ndim == 2 else self.fill
        results["img"] = mmcv.impad(image, shape=self.size, pad_val=fill)
        results["img_shape"] = results["pad_shape"] = self.size
        results["scale_factor"] = (columns / before[1], rows / before[0])
        results["padding_size"] = (0, width - columns, 0, height - rows)
        return results

    def __repr__(self) -> str:
        return f"Letterbox(size={self.size}, fill={self.fill})"
