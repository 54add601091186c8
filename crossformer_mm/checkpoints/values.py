"""Values from the nodes of a pickle: tensors, arrays, dicts and what training state holds.

The table at the end says which names a checkpoint may use, and what stands for each: functions of
this file, which take only what weights and training state need. Whatever would be far larger than
the file is refused before it is made.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from crossformer_mm.checkpoints.inert_pickle import Name, Node, describe_node
from crossformer_mm.utils.errors import CheckpointError, UnsafeCheckpointError

MAX_DEPTH = 100
_PLAIN = (str, int, float, bool, bytes, type(None))
_ARRAY_KINDS = "biufcSU"  # bool, numbers and text: no objects
_HISTORY_STATISTICS = ("min", "max", "current", "mean")
_HISTORY_STATE = {"max_length", "_log_history", "_count_history", "statistics_methods"}
_HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"
_ONE_CYCLE = "mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler"
_ONE_CYCLE_CURVES = ("_annealing_cos", "_annealing_linear")
DTYPES = {f"torch.{name}": v for name, v in vars(torch).items() if type(v) is torch.dtype}
STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
}


class ValueBuilder:
    """Makes the values of one file.

    Args:
        read_storage: Gives the bytes of a storage by its key and number of bytes; raises if it
            has another number.
        limit: The most bytes that the values may take together, written out.
        device: Where tensors go.
    """

    def __init__(
        self,
        read_storage: Callable[[str, int], bytearray],
        limit: int,
        device: str | torch.device = "cpu",
    ) -> None:
        self.read_storage, self.limit, self.device = read_storage, limit, device
        self._built: dict[int, tuple[object, int]] = {}
        self._storages: dict[str, bytearray] = {}

    def build(self, node: object, depth: int = 0) -> object:
        """The value of a node."""
        return self.build_and_weigh(node, depth)[0]

    def build_and_weigh(self, node: object, depth: int) -> tuple[object, int]:
        """The value of a node, and about how many bytes it takes if nothing in it is shared.

        Raises:
            UnsafeCheckpointError: If a node is of another kind than weights need.
            CheckpointError: If it is damaged, nested too deeply or too large.
        """
        if id(node) in self._built:
            return self._built[id(node)]
        if depth > MAX_DEPTH:
            raise CheckpointError("is nested too deeply for a checkpoint")
        if type(node) in (list, tuple):
            parts = [self.build_and_weigh(part, depth + 1) for part in node]
            value, weight = type(node)(v for v, _ in parts), 1 + sum(w for _, w in parts)
        elif type(node) is Node:
            value, weight = self._build_node(node, depth)
        elif type(node) is Name and node in DTYPES:
            return DTYPES[node], 1
        elif type(node) in _PLAIN:
            return node, 1 + (len(node) if type(node) in (str, bytes) else 0)
        else:
            raise UnsafeCheckpointError(f"it holds {describe_node(node)} as a value")
        if weight > self.limit:
            raise CheckpointError("is damaged: what it holds is far larger than the file")
        self._built[id(node)] = value, weight
        return value, weight

    def _build_node(self, node: Node, depth: int) -> tuple[object, int]:
        if node.name == "storage":
            self.storage(node)
            raise UnsafeCheckpointError("it holds a storage that is no tensor")
        make = FUNCTIONS.get(node.name)
        if make is None:
            raise UnsafeCheckpointError(f"it calls {describe_node(Name(node.name))}")
        if node.items and node.name not in _DICTS:
            raise UnsafeCheckpointError(f"it changes {describe_node(node)}")
        if node.state is not None and node.name not in _WITH_STATE:
            raise UnsafeCheckpointError(f"it sets the state of {describe_node(node)}")
        try:
            return make(self, node, depth, *node.args)
        except TypeError:  # another number of arguments
            raise UnsafeCheckpointError(f"it calls {node.name} with other arguments") from None

    def storage(self, node: object) -> Tensor:
        """The values of a storage, along one axis."""
        if type(node) is not Node or node.name != "storage":
            raise UnsafeCheckpointError(f"it has a tensor of {describe_node(node)}")
        if len(node.args) < 5:
            raise UnsafeCheckpointError("it asks for a storage with other arguments")
        kind, dtype, key, _, count, *view = node.args
        if kind not in ("storage", b"storage") or dtype not in STORAGES or view not in ([], [None]):
            what = describe_node(dtype if kind in ("storage", b"storage") else kind)
            raise UnsafeCheckpointError(f"it asks for {what}, which is no storage")
        if type(key) not in (str, bytes) or type(count) is not int or not 0 <= count < 1 << 48:
            raise CheckpointError("is damaged: it has a storage without name or length")
        dtype = STORAGES[dtype]
        if key not in self._storages:
            name = key if type(key) is str else key.decode("latin1")
            self._storages[key] = self.read_storage(name, count * dtype.itemsize)
        memory = self._storages[key]
        if len(memory) != count * dtype.itemsize:
            raise CheckpointError("is damaged: it has a storage of two lengths")
        return torch.frombuffer(memory, dtype=dtype) if count else torch.empty(0, dtype=dtype)

    def pairs(self, pairs: Iterable, kind: type, depth: int) -> tuple[dict, int]:
        """A dict; its keys are plain, or tuples of plain ones: others may hash for ever."""
        found, weight = kind(), 1
        for key, value in pairs:
            key, key_weight = self.build_and_weigh(_plain_key(key), depth + 1)
            found[key], value_weight = self.build_and_weigh(value, depth + 1)
            weight += key_weight + value_weight
        return found, weight


def _plain_key(key: object) -> object:
    for part in key if type(key) is tuple else (key,):
        # Equal hashes for very different integers would make a dict as slow as a list.
        if type(part) not in _PLAIN or (type(part) is int and abs(part) >> 60):
            raise UnsafeCheckpointError(f"it has {describe_node(part)} in a key")
    return key


def _dict(builder: ValueBuilder, node: Node, depth: int) -> tuple[dict, int]:
    return builder.pairs(node.items, dict, depth)


def _ordered_dict(
    builder: ValueBuilder, node: Node, depth: int, pairs: list | tuple = ()
) -> tuple[OrderedDict, int]:
    if type(pairs) not in (list, tuple) or not all(
        type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs
    ):
        raise UnsafeCheckpointError("it makes a dict of what are no pairs")
    found, weight = builder.pairs([*pairs, *node.items], OrderedDict, depth)
    if node.state is not None:
        # Module.state_dict() hangs the versions of the modules on its result.
        state = builder.build(node.state, depth + 1)
        if not isinstance(state, dict) or list(state) != ["_metadata"]:
            raise UnsafeCheckpointError("it sets attributes of an OrderedDict")
        metadata = state["_metadata"]
        if not isinstance(metadata, dict) or not all(
            isinstance(entry, dict) for entry in metadata.values()
        ):
            raise UnsafeCheckpointError("it sets attributes of an OrderedDict")
        found._metadata = metadata
    return found, weight


def _set(
    builder: ValueBuilder, node: Node, depth: int, values: list | tuple = ()
) -> tuple[set, int]:
    if type(values) not in (list, tuple):
        raise UnsafeCheckpointError(f"it makes a set of {describe_node(values)}")
    pairs = [(value, None) for value in (*values, *node.items)]
    found, weight = builder.pairs(pairs, dict, depth)
    return set(found), weight


def _counter(builder: ValueBuilder, node: Node, depth: int, counts: object) -> tuple[Counter, int]:
    """Schedules keep the epochs at which they step in a Counter."""
    found, weight = builder.build_and_weigh(counts, depth + 1)
    if type(found) is not dict or not all(type(count) is int for count in found.values()):
        raise UnsafeCheckpointError(f"it counts {describe_node(counts)}")
    return Counter(found), weight


def _tensor(
    builder: ValueBuilder,
    node: Node,
    depth: int,
    storage: object,
    offset: int,
    size: tuple,
    stride: tuple,
    requires_grad: bool = False,
    hooks: object = None,
    flags: object = None,
) -> tuple[Tensor, int]:
    """Hooks, which would be called by a backward pass, are left out."""
    if flags:
        raise UnsafeCheckpointError("it sets flags of a tensor")
    values = builder.storage(storage)
    axes = type(size) is tuple and type(stride) is tuple and len(size) == len(stride) <= 64
    if not axes or not all(type(n) is int and 0 <= n < 1 << 48 for n in (offset, *size, *stride)):
        raise CheckpointError("is damaged: it has a tensor of no valid size")
    entries = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if entries and last >= len(values):
        raise CheckpointError("is damaged: it has a tensor that is larger than its storage")
    weight = 1 + entries * values.element_size()
    if weight > builder.limit:
        raise CheckpointError("is damaged: it has a tensor that is far larger than the file")
    found = values.as_strided(size, stride, offset if entries else 0).to(builder.device)
    return found.requires_grad_(requires_grad is True and _takes_gradients(found)), weight


def _takes_gradients(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _parameter(
    builder: ValueBuilder, node: Node, depth: int, data: object, requires_grad: bool, hooks: object
) -> tuple[nn.Parameter, int]:
    found, weight = builder.build_and_weigh(data, depth + 1)
    if type(found) is not Tensor:
        raise UnsafeCheckpointError(f"it makes a parameter of {describe_node(data)}")
    needed = requires_grad is True and _takes_gradients(found)
    return nn.Parameter(found.detach(), needed), weight


def _size(builder: ValueBuilder, node: Node, depth: int, sides: tuple) -> tuple[torch.Size, int]:
    if type(sides) is not tuple or not all(type(n) is int and abs(n) < 1 << 62 for n in sides):
        raise UnsafeCheckpointError(f"it has a size of {describe_node(sides)}")
    return torch.Size(sides), 1 + len(sides)


def _device(
    builder: ValueBuilder, node: Node, depth: int, kind: str, index: int | None = None
) -> tuple[torch.device, int]:
    if type(kind) is not str or type(index) not in (int, type(None)):
        raise UnsafeCheckpointError(f"it has a device of {describe_node(kind)}")
    return torch.device(kind) if index is None else torch.device(kind, index), 1


def _array_dtype(
    builder: ValueBuilder, node: Node, depth: int, name: str, *flags: object
) -> tuple[np.dtype, int]:
    """Only types whose values are plain bytes."""
    dtype = np.dtype(name) if type(name) is str and len(name) < 12 else None
    if dtype is None or dtype.kind not in _ARRAY_KINDS or dtype.hasobject:
        raise UnsafeCheckpointError(f"it asks for the array type {describe_node(name)}")
    state = node.state
    if state is not None and (
        type(state) is not tuple
        or len(state) < 5
        or state[1] == ">"
        or any(part is not None for part in state[2:5])
    ):
        raise UnsafeCheckpointError("it has an array of big-endian or structured type")
    return dtype, 1


def _array(
    builder: ValueBuilder, node: Node, depth: int, *ignored: object
) -> tuple[np.ndarray, int]:
    if type(node.state) is not tuple or len(node.state) != 5:
        raise UnsafeCheckpointError("it has an array without content")
    _, shape, dtype, is_fortran, content = node.state
    dtype = _checked_dtype(builder.build(dtype, depth + 1))
    content = builder.build(content, depth + 1)
    if type(content) is not bytes:
        raise UnsafeCheckpointError("it has an array of objects")
    order = "F" if is_fortran is True else "C"
    return np.frombuffer(content, dtype).reshape(shape, order=order).copy(), 1 + len(content)


def _array_scalar(
    builder: ValueBuilder, node: Node, depth: int, dtype: object, content: object
) -> tuple[np.generic, int]:
    dtype = _checked_dtype(builder.build(dtype, depth + 1))
    content = builder.build(content, depth + 1)
    if type(content) is not bytes or len(content) != dtype.itemsize:
        raise CheckpointError("is damaged: it has a number of another length than its type")
    return np.frombuffer(content, dtype, 1)[0], 1 + len(content)


def _checked_dtype(dtype: object) -> np.dtype:
    if not isinstance(dtype, np.dtype) or not dtype.itemsize:
        raise UnsafeCheckpointError(f"it has an array of type {describe_node(dtype)}")
    return dtype


def _encode_latin1(
    builder: ValueBuilder, node: Node, depth: int, text: str, encoding: str
) -> tuple[bytes, int]:
    """Pickles of arrays encode their bytes so."""
    if type(text) is not str or encoding != "latin1":
        raise UnsafeCheckpointError(f"it asks for the encoding {describe_node(encoding)}")
    return text.encode("latin1"), 1 + len(text)


def _empty_bytes(builder: ValueBuilder, node: Node, depth: int) -> tuple[bytes, int]:
    """Pickles of arrays say so that they are empty."""
    return b"", 1


def _attribute(
    builder: ValueBuilder, node: Node, depth: int, owner: object, name: object
) -> tuple[object, int]:
    """Training logs and one schedule name their functions with ``getattr``."""
    if type(owner) is Name and owner == _HISTORY and name in _HISTORY_STATISTICS:
        return name, 1  # thrown away: the class has its own
    if type(owner) is Name and owner == _ONE_CYCLE and name in _ONE_CYCLE_CURVES:
        from mmengine.optim import OneCycleParamScheduler

        return getattr(OneCycleParamScheduler, name), 1
    raise UnsafeCheckpointError(
        f"it asks for the attribute {describe_node(name)} of {describe_node(owner)}"
    )


def _history(builder: ValueBuilder, node: Node, depth: int) -> tuple[HistoryBuffer, int]:
    state = builder.build(node.state, depth + 1)
    if not isinstance(state, dict) or not set(state) <= _HISTORY_STATE:
        raise UnsafeCheckpointError("it sets attributes of a HistoryBuffer")
    # Its statistics are the class's own, which no file may change.
    values = {key: value for key, value in state.items() if key != "statistics_methods"}
    if not all(type(value) in (int, np.ndarray) for value in values.values()):
        raise UnsafeCheckpointError("it sets attributes of a HistoryBuffer")
    found = HistoryBuffer()
    found.__dict__.update(values)
    return found, 1 + sum(getattr(value, "nbytes", 8) for value in values.values())


# What may be called or made, by name; the authors' files have their config as a CfgNode, of which
# only the entries are kept.
FUNCTIONS: dict[str, Callable] = {
    "dict": _dict,
    "set": _set,
    "yacs.config.CfgNode": _dict,
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "builtins.bytes": _empty_bytes,
    "builtins.getattr": _attribute,
    "_codecs.encode": _encode_latin1,
    "numpy.dtype": _array_dtype,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy.core.multiarray.scalar": _array_scalar,
    "torch.Size": _size,
    "torch.device": _device,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    _HISTORY: _history,
}
_DICTS = {"dict", "set", "collections.OrderedDict", "yacs.config.CfgNode"}
_WITH_STATE = {
    *("collections.OrderedDict", "yacs.config.CfgNode", "numpy.dtype"),
    *("numpy.core.multiarray._reconstruct", _HISTORY),
}
# What a checkpoint may name: the above, and what is only an argument.
NAMES = frozenset(
    {*FUNCTIONS, *DTYPES, *STORAGES, "numpy.ndarray", _ONE_CYCLE} - {"dict", "set", "storage"}
)
