"""Where a config expects its data: moving all of it at once, and finding out what is missing."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from crossformer_mm.utils.cli import fail

# The data sets of the shipped configs. Others may download what is missing.
CHECKED_FOLDERS = dict(ImageNet="split", CocoDataset="data_prefix", ADE20KDataset="data_prefix")


def move_paths(value: object, old_root: str, new_root: str) -> object:
    """Replace ``old_root`` at the start of every string inside nested dicts and lists."""
    if isinstance(value, str) and value.startswith(old_root):
        return new_root + value[len(old_root) :]
    if isinstance(value, dict):
        return {key: move_paths(entry, old_root, new_root) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(move_paths(entry, old_root, new_root) for entry in value)
    return value


def check_data(cfg: Mapping, *loaders: str) -> None:
    """Fail if local data of loaders such as ``'train_dataloader'`` are missing."""
    for loader in loaders:
        for dataset in walk_datasets((cfg.get(loader) or {}).get("dataset")):
            for kind, path in _paths(dataset):
                if not path.exists():
                    fail(
                        f"{kind} {path} of {loader} ({dataset.get('type')}) does not exist: put "
                        "the data there or set --cfg-options data_root=DIR"
                    )


def walk_datasets(dataset: object) -> Iterator:
    """A data set, or the config of one, and those that wrappers such as RepeatDataset hold."""
    if dataset is not None and not isinstance(dataset, str):
        yield dataset
        for inner in [getattr(dataset, "dataset", None), *getattr(dataset, "datasets", [])]:
            yield from walk_datasets(inner)


def _paths(dataset: Mapping) -> Iterator[tuple[str, Path]]:
    """The local annotation file and folders of one data set."""
    folders = dataset.get(CHECKED_FOLDERS.get(dataset.get("type", "")))
    folders = folders.values() if isinstance(folders, Mapping) else [folders]
    root = dataset.get("data_root") or ""
    named = [("annotation file", dataset.get("ann_file")), *(("folder", each) for each in folders)]
    for kind, path in named:
        if path and "://" not in path and "://" not in root:
            yield kind, Path(root) / path
