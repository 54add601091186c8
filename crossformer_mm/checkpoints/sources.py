"""From the name of a checkpoint to a file: paths, URLs and mmengine's short names."""

import os
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank

from crossformer_mm.utils.errors import CheckpointError


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
    if scheme in ("http", "https"):
        return _download(str(name))
    if scheme not in ("torchvision", "modelzoo", "open-mmlab", "openmmlab"):
        raise CheckpointError(
            f"checkpoint {name}: {scheme}:// is not supported; give a path or an http(s) URL"
        )
    # Imported here: the backbone does not need mmengine's runner.
    from mmengine.runner import checkpoint as tables

    if scheme in ("torchvision", "modelzoo"):
        urls = tables.get_torchvision_models()
    else:
        urls = tables.get_external_models()
        rest = tables.get_deprecated_model_names().get(rest, rest)
    if rest not in urls:
        raise CheckpointError(f"checkpoint {name}: mmengine knows no such model")
    return find_file(urls[rest])


def _download(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    # The first process fetches it for all; on other machines it may still be missing then.
    if get_rank() != 0:
        barrier()
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
        except (OSError, HTTPException, ValueError) as error:
            raise CheckpointError(f"checkpoint {url} cannot be downloaded: {error}") from error
    if get_rank() == 0:
        barrier()
    return path
