"""Read checkpoint files without running code that they may hold.

A ``.pth`` file is a pickle, and a pickle can name any function to be called while it loads. Here
only names of a closed list are looked up; any other name ends the loading before it is imported.
"""

import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader


class UnsafeCheckpointError(ValueError):
    """A checkpoint names something that loading weights does not need."""


def _history_statistic(owner: object, name: str) -> object:
    """Stand in for ``getattr``, which training logs use for four methods of one class."""
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise UnsafeCheckpointError(f"it asks for the attribute {name!r} of {owner!r}")
    return getattr(HistoryBuffer, name)


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Stand in for ``codecs.encode``, which pickles of arrays use for their bytes."""
    if encoding != "latin1":
        raise UnsafeCheckpointError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "getattr"): _history_statistic,
    ("_codecs", "encode"): _encode_latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("mmengine.logging.history_buffer", "HistoryBuffer"): HistoryBuffer,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
}
for _name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
    _ALLOWED["torch._utils", _name] = getattr(torch._utils, _name)
# numpy 2 renamed the module of these two; files from either version are read with either.
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "_reconstruct"] = np.zeros(1).__reduce__()[0]
    _ALLOWED[_module, "scalar"] = np.float64(0).__reduce__()[0]


class _ListedNamesUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        module = {"__builtin__": "builtins"}.get(module, module)
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype) or name.endswith("Storage") and isinstance(value, type):
            return value
        raise UnsafeCheckpointError(f"it names {module}.{name}")


# The interface that torch.load expects of a pickle module.
_LISTED_NAMES_PICKLE = SimpleNamespace(
    __name__="listed_names_pickle",
    Unpickler=_ListedNamesUnpickler,
    load=lambda file, **kwargs: _ListedNamesUnpickler(file, **kwargs).load(),
)


def load_file(filename: str | Path, map_location: str | torch.device | None = "cpu") -> object:
    """Load a ``.pth`` file, of the zip format or the older one.

    Args:
        filename: The file.
        map_location: Where tensors go, as in :func:`torch.load`.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeCheckpointError: If it names a class or function outside the closed list.
        ValueError: If it is not a checkpoint, or is incomplete.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        return torch.load(
            path, map_location, pickle_module=_LISTED_NAMES_PICKLE, weights_only=False
        )
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(
            f"checkpoint {path} was refused, and nothing in it was run: {error}, "
            "which weights and training state do not need"
        ) from None
    except Exception as error:
        # A damaged pickle can raise nearly anything.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is not a complete PyTorch checkpoint: {reason}") from error


def make_default() -> None:
    """Make mmengine's runner load local files this way, in training, resuming and testing."""
    CheckpointLoader.register_scheme(prefixes="", loader=_load_from_local, force=True)


def _load_from_local(filename: str, map_location: str | None = None) -> object:
    return load_file(filename, map_location)
