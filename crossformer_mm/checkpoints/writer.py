"""Write checkpoints whole or not at all."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from crossformer_mm.utils.errors import CheckpointError, one_line
from crossformer_mm.utils.io import replace_when_complete


def check_destination(source: Path, destination: Path) -> None:
    """Raise CheckpointError if a checkpoint cannot be written there, before work is spent."""
    folder = destination.parent
    try:
        if not folder.is_dir():
            raise CheckpointError(f"{destination} cannot be written: there is no folder {folder}")
        if destination.exists() and not destination.is_file():
            raise CheckpointError(f"{destination} cannot be written: it is not a file")
        if destination.exists() and source.exists() and destination.samefile(source):
            raise CheckpointError(f"{destination} is the source: give the result another name")
    except OSError as error:
        raise CheckpointError(f"{destination} cannot be written: {error.strerror}") from error


def write_checkpoint(path: Path, weights: Mapping[str, Tensor], meta: Mapping) -> None:
    """Write weights as safetensors, if the name ends so, and otherwise for :func:`torch.load`.

    The file appears under its name when it is complete; an older one there is replaced.

    Args:
        path: The file.
        weights: Tensors by name.
        meta: What is known about them: text, numbers, lists and dicts.

    Raises:
        CheckpointError: If it cannot be written, as on a full disk. Nothing is left behind.
    """
    write = _write_safetensors if path.suffix == ".safetensors" else _write_pth
    try:
        weights = own_memory(weights)
        with replace_when_complete(path) as temporary:
            write(temporary, weights, meta)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be written: {_find_reason(error)}") from error


def own_memory(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory, or are parts of more, which would be written as a whole."""
    taken: set[int] = set()
    own = {}
    for name, value in weights.items():
        memory = value.untyped_storage()
        is_own = memory.nbytes() == value.nbytes and memory.data_ptr() not in taken
        taken.add(memory.data_ptr())
        own[name] = value.detach()
        if not (is_own and value.is_contiguous()):
            own[name] = own[name].clone(memory_format=torch.contiguous_format)
    return own


def _write_pth(path: Path, weights: Mapping[str, Tensor], meta: Mapping) -> None:
    # Through a file object: torch's own writer hides what went wrong.
    with path.open("xb") as file:
        torch.save({"meta": dict(meta), "state_dict": dict(weights)}, file)
        file.flush()
        os.fsync(file.fileno())


def _write_safetensors(path: Path, weights: Mapping[str, Tensor], meta: Mapping) -> None:
    from safetensors.torch import save_file

    path.touch(exist_ok=False)
    permissions = path.stat().st_mode
    save_file(dict(weights), path, metadata={"format": "pt", "meta": json.dumps(meta)})
    # The library lets no one else read it.
    path.chmod(permissions)


def _find_reason(error: BaseException) -> str:
    """Find what the system said at the bottom of a chain of errors."""
    # The safetensors library, written in Rust, has the number in its text.
    number = re.search(r"os error (\d+)", str(error))
    if number:
        return os.strerror(int(number[1]))
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno is not None:
            return os.strerror(link.errno)
        link = link.__cause__ or link.__context__
    return one_line(str(error).partition("\n")[0])
