"""Read checkpoint files as data: no code in them is run, whatever they hold.

A ``.pth`` file is a zip archive of one pickle and the bytes of its tensors. Here the pickle becomes
inert nodes (:mod:`.inert_pickle`), and values are made of these from a closed list of names
(:mod:`.values`), the same on every version of PyTorch. Safetensors files hold no code.
"""

import codecs
import json
import os
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import torch

from crossformer_mm.checkpoints.inert_pickle import read_pickle
from crossformer_mm.checkpoints.values import NAMES, ValueBuilder
from crossformer_mm.utils.errors import (
    CheckpointError,
    MissingCheckpointError,
    UnsafeCheckpointError,
    describe,
    one_line,
)

# What a checkpoint holds may be this many times as large as the file, since tensors share memory.
MAX_EXPANSION = 16
SMALL_FILE = 2**20
# Of a file of any size; each weight takes some sixty, and its optimizer's state as many.
MIN_INSTRUCTIONS = 2**18
MAX_DESCRIPTOR = 24  # bytes between two records of a zip file


def load_file(filename: str | Path, map_location: str | torch.device | None = "cpu") -> Any:
    """Load a checkpoint: ``.pth`` as PyTorch writes it since 1.6, or safetensors.

    The format is recognised by content. A safetensors file gives ``{'state_dict', 'meta'}``.

    Args:
        filename: The file.
        map_location: The device that tensors go to; the CPU if it is None or a function.

    Raises:
        MissingCheckpointError: If there is no such file; it is a FileNotFoundError too.
        UnsafeCheckpointError: If it names or does something that weights do not need.
        CheckpointError: If it is not a checkpoint, or is incomplete or damaged.
    """
    path = Path(os.path.expanduser(filename))  # leaves names of unknown users as they are
    device = map_location if isinstance(map_location, str | torch.device) else "cpu"
    try:
        path.stat()  # an error says why it cannot be reached
        if not path.is_file():
            raise CheckpointError("is not a file")
        with path.open("rb") as file:
            read = _find_reader(file.read(512))
            file.seek(0)
            return read(file, path, device)
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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is not a complete checkpoint: {one_line(reason)}") from error


def _find_reader(start: bytes) -> Callable:
    """Recognise a file by how it begins."""
    if not start:
        raise CheckpointError("is empty")
    if start.startswith(b"PK\x03\x04"):
        return _read_zip
    if start[8:9] == b"{":
        return _read_safetensors
    if start.startswith(b"\x80"):
        raise CheckpointError(
            "is a plain pickle or of the format before PyTorch 1.6, which cannot be read safely: "
            "where you trust it, torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
        )
    if start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"<"):
        raise CheckpointError("is a web page, not a checkpoint: download the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError("is a Git LFS pointer, not a checkpoint: run git lfs pull")
    raise CheckpointError("is not a PyTorch or safetensors checkpoint")


def _read_zip(file: BinaryIO, path: Path, device: str | torch.device) -> object:
    if not zipfile.is_zipfile(file):
        raise CheckpointError("is cut off: the end of the file is missing")
    with zipfile.ZipFile(file) as archive:
        size = os.fstat(file.fileno()).st_size
        records = _checked_records(archive)
        # All names begin with that of the archive, which has no meaning.
        top = archive.namelist()[0].partition("/")[0]
        if f"{top}/data.pkl" not in records:
            raise CheckpointError("is a zip file, but not a checkpoint: there is no data.pkl")
        if f"{top}/byteorder" in records and archive.read(f"{top}/byteorder") != b"little":
            raise CheckpointError("was written on a big-endian machine: convert it there")

        @cache  # tensors share memory
        def read_storage(key: str, length: int) -> bytearray:
            name = f"{top}/data/{key}"
            if name not in records or records[name].file_size != length:
                wrong = f"its storage {describe(key)} has not {length} bytes"
                raise CheckpointError(f"is damaged: {wrong}")
            try:
                return bytearray(archive.read(name))
            except zipfile.BadZipFile:
                wrong = f"the checksum of {one_line(name)} is wrong"
                raise CheckpointError(f"is damaged: {wrong}") from None

        nodes = read_pickle(archive.read(f"{top}/data.pkl"), NAMES, MIN_INSTRUCTIONS + size // 16)
        return ValueBuilder(read_storage, MAX_EXPANSION * size + SMALL_FILE, device).build(nodes)


def _check_places(archive: zipfile.ZipFile) -> None:
    """Raise CheckpointError unless a file is its records and directory, one after the other.

    Otherwise it may hold others, which other programs find first.
    """
    assert archive.fp  # it is open
    end = 0
    for record in sorted(archive.infolist(), key=lambda record: record.header_offset):
        gap = record.header_offset - end
        if not 0 <= gap <= MAX_DESCRIPTOR:
            break
        archive.fp.seek(record.header_offset + 26)
        end += gap + 30 + sum(struct.unpack("<HH", archive.fp.read(4))) + record.compress_size
    else:
        gap = archive.start_dir - end
    if not 0 <= gap <= MAX_DESCRIPTOR or archive.comment:
        raise CheckpointError("is damaged: its records overlap, or there is more than these")


def _checked_records(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The records by name; raises CheckpointError if they cannot be what PyTorch wrote."""
    records = archive.infolist()
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise UnsafeCheckpointError("it is a TorchScript archive, a program")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError("is compressed, which checkpoints are not")
    _check_places(archive)
    if len({record.filename.lower() for record in records}) < len(records):
        raise CheckpointError("is damaged: two of its records have the same name")
    if not any(record.CRC for record in records):
        for record in records:  # PyTorch wrote no checksums
            del record.CRC
    return {record.filename: record for record in records}


def _read_safetensors(file: BinaryIO, path: Path, device: str | torch.device) -> dict:
    # Imported here: loading .pth files needs torch and mmengine only.
    from safetensors import safe_open

    with safe_open(path, framework="pt") as content:
        meta = json.loads((content.metadata() or {}).get("meta", "{}"))
        names = content.keys()
        return {"meta": meta, "state_dict": {n: content.get_tensor(n).to(device) for n in names}}
