"""Read checkpoint files without running code that they may hold.

A ``.pth`` file is a pickle, and a pickle can name any function to be called while it loads. Here
only the names of a closed list are known; see :mod:`crossformer_mm.listed_pickle`. Files in the
safetensors format hold no code.
"""

import codecs
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from crossformer_mm.checkpoint_errors import (
    CheckpointError,
    MissingCheckpointError,
    UnsafeCheckpointError,
    one_line,
)
from crossformer_mm.listed_pickle import pickle_of_one_file

__all__ = ["CheckpointError", "MissingCheckpointError", "UnsafeCheckpointError", "load_file"]


def load_file(filename: str | Path, map_location: str | torch.device | None = "cpu") -> object:
    """Load a checkpoint: ``.pth`` of the zip format or the older one, or safetensors.

    The format is recognised by content. A safetensors file gives ``{'state_dict', 'meta'}``.

    Args:
        filename: The file.
        map_location: Where tensors go, as in :func:`torch.load`.

    Raises:
        MissingCheckpointError: If there is no such file; it is a FileNotFoundError too.
        UnsafeCheckpointError: If it names a class or function outside the closed list.
        CheckpointError: If it is not a checkpoint, or is incomplete or damaged.
    """
    path = Path(os.path.expanduser(filename))  # leaves names of unknown users as they are
    try:
        load = _find_reader(path)
        return load(path, map_location)
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(
            f"checkpoint {path} was refused, and nothing in it was run: {error}, "
            "which weights and training state do not need"
        ) from None
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None
    except FileNotFoundError:
        raise MissingCheckpointError(f"checkpoint {path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        # A damaged pickle can raise nearly anything.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} is not a complete checkpoint: {one_line(reason)}") from error


def _find_reader(path: Path) -> Callable:
    """Recognise a file by how it begins."""
    path.stat()  # an error says why it cannot be reached
    if not path.is_file():
        raise CheckpointError("is not a file")
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise CheckpointError("is empty")
    if start.startswith(b"PK\x03\x04"):
        return _load_zip
    if start.startswith(b"\x80"):
        return _load_legacy
    if start[8:9] == b"{":
        return _load_safetensors
    if start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"<"):
        raise CheckpointError("is a web page, not a checkpoint: download the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError("is a Git LFS pointer, not a checkpoint: run git lfs pull")
    raise CheckpointError("is not a PyTorch or safetensors checkpoint")


def _load_zip(path: Path, map_location: str | torch.device | None) -> object:
    if not zipfile.is_zipfile(path):
        raise CheckpointError("is cut off: the end of the file is missing")
    # Asked of the reader that torch.load uses: it would run the code of such an archive.
    if "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records():
        raise UnsafeCheckpointError("it is a TorchScript archive, a program")
    with zipfile.ZipFile(path) as archive:
        _check_records(archive, path.stat().st_size)
        # Their names begin with that of the archive, which has no meaning.
        sizes = {
            record.filename.partition("/data/")[2]: record.file_size
            for record in archive.infolist()
        }
    return _load_pickle(path, map_location, sizes)


def _check_records(archive: zipfile.ZipFile, file_size: int) -> None:
    """Raise CheckpointError if records are damaged, or larger than the file that holds them."""
    records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError("is compressed, which checkpoints are not")
    if sum(record.file_size for record in records) > file_size:
        raise CheckpointError("is damaged: its records overlap")
    if len({record.filename.lower() for record in records}) < len(records):
        raise CheckpointError("is damaged: two of its records have the same name")
    # torch.load does not look at the checksums; zeros mean that none were written.
    damaged = archive.testzip() if any(record.CRC for record in records) else None
    if damaged is not None:
        raise CheckpointError(f"is damaged: the checksum of {one_line(damaged)} is wrong")


def _load_legacy(path: Path, map_location: str | torch.device | None) -> object:
    # A format older still, which torch.load would unpack into files.
    if tarfile.is_tarfile(path):
        raise CheckpointError("is a tar archive, not a checkpoint")
    return _load_pickle(path, map_location)


def _load_pickle(
    path: Path, map_location: str | torch.device | None, sizes: dict[str, int] | None = None
) -> object:
    if os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0").lower() in ("1", "y", "yes", "true"):
        raise CheckpointError(
            "cannot be read while TORCH_FORCE_WEIGHTS_ONLY_LOAD is set: unset it, no code in a "
            "file is run here either"
        )
    reader = pickle_of_one_file(sizes)
    return torch.load(path, map_location, pickle_module=reader, weights_only=False)


def _load_safetensors(path: Path, map_location: str | torch.device | None) -> dict:
    # Imported here: loading .pth files needs torch and mmengine only.
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta = json.loads((file.metadata() or {}).get("meta", "{}"))
    if map_location is not None:
        weights = {name: value.to(map_location) for name, value in weights.items()}
    return {"meta": meta, "state_dict": weights}
