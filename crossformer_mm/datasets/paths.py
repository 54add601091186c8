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
    """Fail before anything is built if local files or folders of the data are missing.

    Args:
        cfg: The config.
        loaders: Its data loaders to look at, such as ``'train_dataloader'``.
    """
    for loader in loaders:
        for dataset in _datasets((cfg.get(loader) or {}).get("dataset", {})):
            for kind, path in _paths(dataset):
                if not path.exists():
                    fail(
                        f"{kind} {path} of {loader} ({dataset.get('type')}) does not exist: put "
                        "the data there or set --cfg-options data_root=DIR"
                    )


def _datasets(dataset: Mapping) -> Iterator[Mapping]:
    """Walk through wrappers like RepeatDataset and ConcatDataset."""
    yield dataset
    for inner in [dataset.get("dataset"), *dataset.get("datasets", [])]:
        if isinstance(inner, Mapping):
            yield from _datasets(inner)


def _paths(dataset: Mapping) -> Iterator[tuple[str, Path]]:
    """The local annotation file and folders of one data set."""
    named = [("annotation file", dataset.get("ann_file"))]
    folders = dataset.get(CHECKED_FOLDERS.get(dataset.get("type")))
    folders = folders.values() if isinstance(folders, Mapping) else [folders]
    named += [("folder", folder) for folder in folders]
    root = dataset.get("data_root") or ""
    for kind, path in named:
        if path and "://" not in path and "://" not in root:
            yield kind, Path(root) / path
