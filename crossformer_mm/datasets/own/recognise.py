"""Finds out which format a folder's data has, and reads it."""

from pathlib import Path

from crossformer_mm.datasets.own import coco, image_folders, voc, yolo
from crossformer_mm.datasets.own.files import SPLITS
from crossformer_mm.datasets.own.records import DataSetError, OwnDataset

# A folder per class is last, as almost any folder looks like that.
_READERS = (coco.read, yolo.read, voc.read)
_READERS += (image_folders.read_label_maps, image_folders.read_class_folders)
_LOOKED_FOR = (
    "COCO JSON (annotations/*.json or *.json), YOLO (data.yaml, or images/ and labels/*.txt), "
    "Pascal VOC (*.xml), images and label maps (images/ and masks/*.png of the same names), "
    "a folder per class (train/CLASS/*.jpg or CLASS/*.jpg)"
)


def read_dataset(root: Path) -> OwnDataset:
    """Read a data set of any known format.

    Raises:
        DataSetError: If the folder has none, or a file that is not what it must be.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataSetError(f"{root} is no folder")
    for reader in _READERS:
        if (dataset := reader(root)) is not None:
            found = dataset.splits
            dataset.splits = {split: found[split] for split in SPLITS if split in found}
            return dataset
    raise DataSetError(f"{root} has no data of a known format; looked for {_LOOKED_FOR}")
