"""From the name of a checkpoint to a file: paths, URLs and mmengine's short names."""

import os
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank

from crossformer_mm.utils.errors import CheckpointError

# mmengine looks these up in tables of URLs.
NAME_SCHEMES = ("torchvision", "modelzoo", "open-mmlab", "openmmlab")


def find_file(name: str | Path) -> Path:
    """Return the file that a checkpoint name stands for, downloaded if it is not here yet.

    Args:
        name: A path, an ``http(s)://`` URL, or a name of a model as mmengine has them, such as
            ``torchvision://resnet50``. Downloads go to torch's cache folder.

    Raises:
        CheckpointError: If the name has another scheme or cannot be downloaded.
    """
    scheme, separator, rest = str(name).partition("://")
    if not separator:
        return Path(os.path.expanduser(name))
    if scheme == "file":
        return Path(rest)
    if scheme in NAME_SCHEMES:
        return find_file(_look_up(scheme, rest))
    if scheme not in ("http", "https"):
        raise CheckpointError(
            f"checkpoint {name}: {scheme}:// is not supported; give a path or an http(s) URL"
        )
    return _download(str(name))


def _look_up(scheme: str, name: str) -> str:
    # Imported here: the backbone does not need mmengine's runner.
    from mmengine.runner import checkpoint as tables

    if scheme in ("torchvision", "modelzoo"):
        urls = tables.get_torchvision_models()
    else:
        urls = tables.get_external_models()
        name = tables.get_deprecated_model_names().get(name, name)
    if name not in urls:
        raise CheckpointError(f"checkpoint {scheme}://{name}: mmengine knows no such model")
    return urls[name]


def _download(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if get_rank() == 0:
        _fetch(url, path)
    barrier()
    # On other machines it may still be missing.
    _fetch(url, path)
    return path


def _fetch(url: str, path: Path) -> None:
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path))
    except (OSError, HTTPException, ValueError) as error:
        raise CheckpointError(f"checkpoint {url} cannot be downloaded: {error}") from error
