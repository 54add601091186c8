"""A data set's own pipeline, whose errors name the file, and which checks what was loaded."""

import os
from collections.abc import Iterable
from contextlib import suppress

from mmengine.dataset import BaseDataset, Compose
from PIL import Image, UnidentifiedImageError

from crossformer_mm.datasets.transforms import CheckSegLabels
from crossformer_mm.utils.errors import DataError


class CheckedCompose(Compose):
    """The transforms of a data set; when one fails, the error says on which file.

    Args:
        dataset: A data set with a pipeline. Where it has label maps, its pipeline checks them.
    """

    def __init__(self, dataset: BaseDataset) -> None:
        self.transforms = list(dataset.pipeline.transforms)
        self.extra = {}
        if hasattr(dataset, "reduce_zero_label"):  # mmseg's
            self.extra["num_classes"] = len(dataset.metainfo.get("classes") or ()) or None
            names = [type(transform).__name__ for transform in self.transforms]
            if "LoadAnnotations" in names and "CheckSegLabels" not in names:
                check = CheckSegLabels(getattr(dataset, "ignore_index", 255))
                self.transforms.insert(names.index("LoadAnnotations") + 1, check)

    def __call__(self, data: dict) -> dict | None:
        """Apply the transforms, as :class:`mmengine.dataset.Compose` does.

        Raises:
            DataError: If a transform raises, or an image is not of the size that was declared.
        """
        return self.apply(self.transforms, data)

    def load_labels(self, data: dict) -> dict | None:
        """Apply the transforms that come before and with ``CheckSegLabels``."""
        names = [type(transform).__name__ for transform in self.transforms]
        if "CheckSegLabels" not in names:
            return None
        return self.apply(self.transforms[: names.index("CheckSegLabels") + 1], data)

    def apply(self, transforms: Iterable, data: dict) -> dict | None:
        """Apply some of the transforms."""
        sample, declared = data, (data.get("height"), data.get("width"))
        data = {**data, **self.extra}
        for transform in transforms:
            try:
                if transform is self.transforms[0]:
                    check_image_file(sample.get("img_path"))
                    check_image_file(sample.get("seg_map_path"), is_label_map=True)
                data = transform(data)
                if declared and data is not None and "ori_shape" in data:
                    check_size(data["ori_shape"], declared)
                    declared = None
            except Exception as error:
                files = f"image {sample.get('img_path')}"
                if sample.get("seg_map_path"):
                    files += f", label map {sample['seg_map_path']}"
                name, what = type(transform).__name__, str(error) or type(error).__name__
                raise DataError(f"{name} failed on {files}: {what}") from error
            if data is None:
                return None
        return data


def check_image_file(path: str | None, is_label_map: bool = False) -> None:
    """Look at a local file before OpenCV reads it, which waits for pipes and takes any size.

    Raises:
        ValueError: If it is no file, or has labels of more than 8 bits.
        SyntaxError: If the checksums of a label map in PNG tell that it is damaged.
        PIL.Image.DecompressionBombError: If it has more pixels than Pillow takes.
    """
    if path is None or "://" in str(path) or not os.path.exists(path):
        return
    if not os.path.isfile(path):
        raise ValueError(f"{path} is not a file")
    with suppress(UnidentifiedImageError), Image.open(path) as image:
        if is_label_map and image.mode[0] in "IF":
            raise ValueError(
                f"the label map {path} has labels of more than 8 bits ({image.mode}), which the "
                "library would cut off: save it with 8 bits"
            )
        if is_label_map:
            image.verify()  # checksums, which decoding does not look at


def check_size(found: tuple[int, ...], declared: tuple[int | None, int | None]) -> None:
    """Raise ValueError if an annotation says another height and width than its image has."""
    if None in declared or tuple(found[:2]) == declared:
        return
    height, width = found[:2]
    turned = ", as if its EXIF orientation had not been applied" * (declared == (width, height))
    raise ValueError(
        f"the image is {width} x {height} pixels (width x height), but its annotation says "
        f"{declared[1]} x {declared[0]}{turned}: its boxes do not lie where they should"
    )
