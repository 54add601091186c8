"""The names that a pickled checkpoint may use, and an unpickler that knows no others.

Most names stand for inert replacements. Whatever else a file names is refused before it is
imported.
"""

import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and the reason."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint names something that loading weights does not need."""


class InertConfig(dict):
    """Stands in for the ``yacs`` config object in the authors' files: entries, no behaviour."""


# Only an argument of _listed_attribute, and never called.
_ONE_CYCLE = "mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler"
_HISTORY_STATISTICS = ("min", "max", "current", "mean")
_ONE_CYCLE_CURVES = ("_annealing_cos", "_annealing_linear")
_HISTORY_STATE = {"max_length", "_log_history", "_count_history", "statistics_methods"}
_ARRAY_KINDS = "biufcSU"  # bool, numbers and text: no objects


def _listed_attribute(owner: object, name: str) -> object:
    """Stand in for ``getattr``, which training logs and one schedule use for their functions."""
    if owner is HistoryBuffer and name in _HISTORY_STATISTICS:
        return getattr(HistoryBuffer, name)
    if owner == _ONE_CYCLE and name in _ONE_CYCLE_CURVES:
        return getattr(OneCycleParamScheduler, name)
    raise UnsafeCheckpointError(f"it asks for the attribute {name!r} of {owner!r}")


def _counts(counts: dict) -> Counter:
    """Stand in for ``Counter``, in which schedules keep the epochs at which they step."""
    if type(counts) is not dict or not all(type(n) is int for n in counts.values()):
        raise UnsafeCheckpointError(f"it counts {counts!r}")
    return Counter(counts)


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Stand in for ``codecs.encode``, which pickles of arrays use for their bytes."""
    if encoding != "latin1":
        raise UnsafeCheckpointError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """Stand in for ``bytes``, with which pickles of arrays say that they are empty."""
    return b""


def _plain_dtype(name: str, *flags: object) -> np.dtype:
    """Stand in for ``numpy.dtype``: only types whose values are plain bytes."""
    dtype = np.dtype(name) if isinstance(name, str) else None
    if dtype is None or dtype.kind not in _ARRAY_KINDS or dtype.hasobject:
        raise UnsafeCheckpointError(f"it asks for the array type {name!r}")
    return dtype


def _empty_array(*ignored: object) -> np.ndarray:
    """Stand in for numpy's constructor of arrays that are filled later."""
    return np.empty(0)


def _plain_scalar(dtype: np.dtype, value: bytes) -> np.generic:
    """Stand in for numpy's constructor of scalars."""
    return np.frombuffer(value, _checked_dtype(dtype), count=1)[0]


def _checked_dtype(dtype: object) -> np.dtype:
    if not isinstance(dtype, np.dtype):
        raise UnsafeCheckpointError(f"it has an array of type {dtype!r}")
    return dtype


_ALLOWED = {
    ("collections", "Counter"): _counts,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "bytes"): _empty_bytes,
    ("builtins", "getattr"): _listed_attribute,
    ("_codecs", "encode"): _encode_latin1,
    ("numpy", "ndarray"): "numpy.ndarray",  # only an argument of _empty_array
    ("numpy", "dtype"): _plain_dtype,
    ("mmengine.logging.history_buffer", "HistoryBuffer"): HistoryBuffer,
    tuple(_ONE_CYCLE.rsplit(".", 1)): _ONE_CYCLE,
    ("yacs.config", "CfgNode"): InertConfig,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
}
for _name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
    _ALLOWED["torch._utils", _name] = getattr(torch._utils, _name)
# numpy 2 renamed the module of these two; files from either version are read with either.
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "_reconstruct"] = _empty_array
    _ALLOWED[_module, "scalar"] = _plain_scalar


def _set_ordered_dict_state(target: OrderedDict, state: dict) -> None:
    # Module.state_dict() hangs the versions of the modules on its result.
    if set(state) != {"_metadata"}:
        raise UnsafeCheckpointError(f"it sets attributes of an OrderedDict: {sorted(state)}")
    target._metadata = state["_metadata"]


def _set_history_state(target: HistoryBuffer, state: dict) -> None:
    if not set(state) <= _HISTORY_STATE:
        raise UnsafeCheckpointError(f"it sets attributes of a HistoryBuffer: {sorted(state)}")
    # Its statistics are the class's own, which no file may change.
    state.pop("statistics_methods", None)
    target._set_default_statistics()
    target.__dict__.update(state)


def _set_array_state(target: np.ndarray, state: tuple) -> None:
    _, _, dtype, _, data = state
    _checked_dtype(dtype)
    if not isinstance(data, bytes):
        raise UnsafeCheckpointError("it has an array of objects")
    target.__setstate__(state)


def _check_dtype_state(target: np.dtype, state: tuple) -> None:
    if state[1] == ">" or any(part is not None for part in state[2:5]):
        raise UnsafeCheckpointError("it has an array of big-endian or structured type")


# What the BUILD instruction may change, by exact type: never a class or a function.
_BUILDERS: dict[type, Callable] = {
    OrderedDict: _set_ordered_dict_state,
    HistoryBuffer: _set_history_state,
    np.ndarray: _set_array_state,
    InertConfig: lambda target, state: None,  # flags of yacs
}


class _ListedNamesUnpickler(pickle._Unpickler):
    """The unpickler of the standard library in Python, so that two instructions can be guarded."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> object:
        # Files are written with Python 2's names, where it has others.
        module = IMPORT_MAPPING.get(module, module)
        module, name = NAME_MAPPING.get((module, name), (module, name))
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype) or name.endswith("Storage") and isinstance(value, type):
            return value
        raise UnsafeCheckpointError(f"it names {module}.{name}")

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, np.dtype):
            _check_dtype_state(target, state)
        elif type(target) in _BUILDERS:
            _BUILDERS[type(target)](target, state)
        else:
            raise UnsafeCheckpointError(f"it sets the state of {target!r}")

    dispatch[pickle.BUILD[0]] = load_build


# The interface that torch.load expects of a pickle module.
LISTED_NAMES_PICKLE = SimpleNamespace(
    __name__="listed_names_pickle",
    Unpickler=_ListedNamesUnpickler,
    load=lambda file, **kwargs: _ListedNamesUnpickler(file, **kwargs).load(),
)
