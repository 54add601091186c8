"""Write checkpoints whole or not at all."""

import json
import os
import re
import traceback
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from crossformer_mm.utils.errors import CheckpointError, one_line
from crossformer_mm.utils.io import atomic_write


def check_destination(source: Path, destination: Path) -> None:
    """Raise CheckpointError if a checkpoint cannot be written there, before work is spent."""
    folder = destination.parent
    try:
        if not folder.is_dir():
            raise CheckpointError(f"{destination} cannot be written: there is no folder {folder}")
        if destination.exists():
            if not destination.is_file():
                raise CheckpointError(f"{destination} cannot be written: it is not a file")
            if source.exists() and destination.samefile(source):
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
    try:
        weights = _own_memory(weights)
        # Through a file object: torch's own writer hides what went wrong.
        with atomic_write(path) as temporary, temporary.open("xb") as file:
            if path.suffix == ".safetensors":
                from safetensors.torch import save_file

                permissions = temporary.stat().st_mode
                save_file(weights, temporary, {"format": "pt", "meta": json.dumps(meta)})
                temporary.chmod(permissions)  # the library lets no one else read it
            else:
                torch.save({"meta": dict(meta), "state_dict": weights}, file)
                file.flush()
                os.fsync(file.fileno())
    except Exception as error:
        # The system's number is in the text of safetensors, or in an error below torch's.
        number = re.search(r"(?:os error|Errno) (\d+)", "".join(traceback.format_exception(error)))
        reason = os.strerror(int(number[1])) if number else str(error).partition("\n")[0]
        raise CheckpointError(f"{path} cannot be written: {one_line(reason)}") from error


def _own_memory(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
