"""The names that a pickled checkpoint may use, and what stands for each.

Nothing that a file names is looked up elsewhere. What it may call are the functions of this file,
which take only what weights and training state need; classes and dtypes are never called.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler
from torch import Tensor, nn

from crossformer_mm.checkpoint_errors import UnsafeCheckpointError, describe


class InertConfig(dict):
    """Stands in for the ``yacs`` config object in the authors' files: entries, no behaviour."""


# Only an argument of _listed_attribute.
_ONE_CYCLE = "mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler"
_HISTORY_STATISTICS = ("min", "max", "current", "mean")
_ONE_CYCLE_CURVES = ("_annealing_cos", "_annealing_linear")
_HISTORY_STATE = {"max_length", "_log_history", "_count_history", "statistics_methods"}
_ARRAY_KINDS = "biufcSU"  # bool, numbers and text: no objects
_KEYS = (str, int, float, bool, bytes, type(None))


def check_keys(keys: Iterable) -> None:
    """Raise UnsafeCheckpointError at a key of a dict that is not plain, or a tuple of plain values.

    To hash tuples of tuples can take for ever.
    """
    for key in keys:
        for part in key if type(key) is tuple else (key,):
            if type(part) not in _KEYS:
                raise UnsafeCheckpointError(f"it has {describe(part)} in a key")


def _ordered_dict(pairs: Iterable = ()) -> OrderedDict:
    check_keys(key for key, _ in pairs)
    return OrderedDict(pairs)


def _set(values: Iterable = ()) -> set:
    check_keys(values)
    return set(values)


def _counts(counts: dict) -> Counter:
    """Schedules keep the epochs at which they step in a Counter."""
    if type(counts) is not dict or not all(type(count) is int for count in counts.values()):
        raise UnsafeCheckpointError(f"it counts {describe(counts)}")
    return Counter(counts)


def _listed_attribute(owner: object, name: str) -> object:
    """Training logs and one schedule name their functions with ``getattr``."""
    if owner is HistoryBuffer and name in _HISTORY_STATISTICS:
        return name  # thrown away: the class has its own
    if owner == _ONE_CYCLE and name in _ONE_CYCLE_CURVES:
        return getattr(OneCycleParamScheduler, name)
    raise UnsafeCheckpointError(f"it asks for the attribute {describe(name)} of {describe(owner)}")


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Pickles of arrays encode their bytes so."""
    if encoding != "latin1":
        raise UnsafeCheckpointError(f"it asks for the encoding {describe(encoding)}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """Pickles of arrays say so that they are empty."""
    return b""


def _plain_dtype(name: str, *flags: object) -> np.dtype:
    """Only types whose values are plain bytes."""
    dtype = np.dtype(name) if isinstance(name, str) else None
    if dtype is None or dtype.kind not in _ARRAY_KINDS or dtype.hasobject:
        raise UnsafeCheckpointError(f"it asks for the array type {describe(name)}")
    return dtype


def _empty_array(*ignored: object) -> np.ndarray:
    """An array that is filled later."""
    return np.empty(0)


def _plain_scalar(dtype: np.dtype, value: bytes) -> np.generic:
    return np.frombuffer(value, _checked_dtype(dtype), count=1)[0]


def _checked_dtype(dtype: object) -> np.dtype:
    if not isinstance(dtype, np.dtype):
        raise UnsafeCheckpointError(f"it has an array of type {describe(dtype)}")
    return dtype


def _tensor(
    storage: torch.TypedStorage,
    offset: int,
    size: tuple,
    stride: tuple,
    requires_grad: bool = False,
    hooks: object = None,
    flags: object = None,
) -> Tensor:
    """Hooks, which would be called by a backward pass, are left out."""
    if flags:
        raise UnsafeCheckpointError("it sets flags of a tensor")
    return torch._utils._rebuild_tensor_v2(
        storage, offset, size, stride, requires_grad, OrderedDict()
    )


def _parameter(data: Tensor, requires_grad: bool, hooks: object) -> nn.Parameter:
    return nn.Parameter(data, requires_grad)


def _size(sides: tuple) -> torch.Size:
    return torch.Size(sides)


def _device(*name_and_index: object) -> torch.device:
    return torch.device(*name_and_index)


# By module and name: what may be called, ...
FUNCTIONS: dict[tuple[str, str], Callable] = {
    ("collections", "Counter"): _counts,
    ("collections", "OrderedDict"): _ordered_dict,
    ("builtins", "set"): _set,
    ("builtins", "bytes"): _empty_bytes,
    ("builtins", "getattr"): _listed_attribute,
    ("_codecs", "encode"): _encode_latin1,
    ("numpy", "dtype"): _plain_dtype,
    # numpy 2 renamed the module of these two; files from either version are read with either.
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.multiarray", "scalar"): _plain_scalar,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "scalar"): _plain_scalar,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
# ... what an object may be made of, without arguments, ...
CLASSES: dict[tuple[str, str], type] = {
    ("mmengine.logging.history_buffer", "HistoryBuffer"): HistoryBuffer,
    ("yacs.config", "CfgNode"): InertConfig,
}
# ... and what may only be an argument.
ARGUMENTS: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): "numpy.ndarray",
    tuple(_ONE_CYCLE.rsplit(".", 1)): _ONE_CYCLE,
    **{("torch", name): value for name, value in vars(torch).items() if type(value) is torch.dtype},
}


def _set_ordered_dict_state(target: OrderedDict, state: dict) -> None:
    # Module.state_dict() hangs the versions of the modules on its result.
    if list(state) != ["_metadata"] or not isinstance(state["_metadata"], dict):
        raise UnsafeCheckpointError("it sets attributes of an OrderedDict")
    target._metadata = state["_metadata"]


def _set_history_state(target: HistoryBuffer, state: dict) -> None:
    # Its statistics are the class's own, which no file may change.
    values = {key: value for key, value in state.items() if key != "statistics_methods"}
    if not set(state) <= _HISTORY_STATE or not all(
        type(value) in (int, np.ndarray) for value in values.values()
    ):
        raise UnsafeCheckpointError("it sets attributes of a HistoryBuffer")
    target._set_default_statistics()
    target.__dict__.update(values)


def _fill_array(target: np.ndarray, state: tuple) -> None:
    _, _, dtype, _, data = state
    _checked_dtype(dtype)
    if target.size:
        raise UnsafeCheckpointError("it fills an array twice")
    if not isinstance(data, bytes):
        raise UnsafeCheckpointError("it has an array of objects")
    target.__setstate__(state)


def _check_dtype_state(target: np.dtype, state: tuple) -> None:
    if state[1] == ">" or any(part is not None for part in state[2:5]):
        raise UnsafeCheckpointError("it has an array of big-endian or structured type")


def set_state(target: object, state: object) -> None:
    """Give an object of a pickle its state.

    Raises:
        UnsafeCheckpointError: If it is not of a listed kind, or not a state of it.
    """
    # By exact type: never a class or a function.
    setters = {
        OrderedDict: _set_ordered_dict_state,
        HistoryBuffer: _set_history_state,
        np.ndarray: _fill_array,
        InertConfig: lambda target, state: None,  # flags of yacs
    }
    setter = _check_dtype_state if isinstance(target, np.dtype) else setters.get(type(target))
    if setter is None:
        raise UnsafeCheckpointError(f"it sets the state of {describe(target)}")
    setter(target, state)
