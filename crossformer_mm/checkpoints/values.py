"""Values from the nodes of a pickle: tensors, arrays, dicts and what training state holds.

The table at the end says which names a checkpoint may use, what stands for each, and of which types
its arguments are: only what weights and training state need. Arguments are built and checked before
anything is made of them, and whatever would be far larger than the file is refused before that.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from crossformer_mm.checkpoints.inert_pickle import Name, Node, describe_node
from crossformer_mm.utils.errors import CheckpointError, UnsafeCheckpointError, describe

MAX_DEPTH = 100
_PLAIN = (str, int, float, bool, bytes, type(None))
_HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"
_ONE_CYCLE = "mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler"
DTYPES = {f"torch.{name}": v for name, v in vars(torch).items() if type(v) is torch.dtype}
_NAMED_AS_STORAGES = ("Bool", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double")
STORAGES = {
    **{f"torch.{name}Storage": getattr(torch, name.lower()) for name in _NAMED_AS_STORAGES},
    **{"torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8},
    **{"torch.ComplexFloatStorage": torch.cfloat, "torch.ComplexDoubleStorage": torch.cdouble},
}


class _Storage(NamedTuple):
    """An argument of tensors: its values, along one axis."""

    values: Tensor


class ValueBuilder:
    """Makes the values of one file.

    Args:
        read_storage: Gives the bytes of a storage by its key and number of bytes, the same memory
            each time; raises if it has another number.
        limit: The most bytes that the values may take together, written out.
        device: Where tensors go.
    """

    def __init__(
        self, read_storage: Callable[[str, int], bytearray], limit: int, device: str | torch.device
    ) -> None:
        self.read_storage, self.limit, self.device = read_storage, limit, device
        self._built: dict[int, tuple[object, int]] = {}
        self._depth = self._size = 0

    def build(self, node: object) -> object:
        """The value of a node.

        Raises:
            UnsafeCheckpointError: If a node is of another kind than weights need.
            CheckpointError: If it is damaged, nested too deeply or too large.
        """
        value = self._argument(node)
        if type(value) in (Name, _Storage):
            raise UnsafeCheckpointError(f"it holds {describe_node(node)} as a value")
        return value

    def _argument(self, node: Any) -> object:
        """The value of a node, or a name or storage."""
        if type(node) is Name:
            return DTYPES.get(node, node)
        if type(node) in _PLAIN:
            self._add_size(1 + (len(node) if type(node) in (str, bytes) else 0))
            return node
        if id(node) in self._built:
            value, size = self._built[id(node)]
            self._add_size(size)
            return value
        if self._depth > MAX_DEPTH:
            raise CheckpointError("is nested too deeply for a checkpoint")
        size_before = self._size
        self._add_size(1)
        self._depth += 1
        is_node = type(node) is Node
        value = self._make(node) if is_node else type(node)(map(self.build, node))
        self._depth -= 1
        self._built[id(node)] = value, self._size - size_before
        return value

    def _add_size(self, size: int, what: str = "what it holds") -> None:
        """Count bytes, those of shared values as often as they are used."""
        self._size += size
        if self._size > self.limit:
            raise CheckpointError(f"is damaged: {what} is far larger than the file")

    def _make(self, node: Node) -> object:
        if node.name not in FUNCTIONS:
            raise UnsafeCheckpointError(f"it calls {node.name}")
        function, *kinds = FUNCTIONS[node.name]
        more: dict[str, object] = {}
        try:
            args = list(map(self._argument, node.args))
            if node.items:
                more["items"] = [(self.build(key), self.build(value)) for key, value in node.items]
            if node.state is not None:
                more["state"] = self.build(node.state)
            if len(args) > len(kinds) or not all(map(isinstance, args, kinds)):
                raise TypeError
            return function(self, *args, **more)
        except TypeError:  # also from a function that takes no items or no state
            used = f"{node.name} with other arguments, items or state"
            raise UnsafeCheckpointError(f"it calls {used}") from None

    def _storage(
        self, what: str, kind: Name, key: str, device: str, count: int, view: None = None
    ) -> _Storage:
        if what != "storage" or kind not in STORAGES:
            raise UnsafeCheckpointError(f"it asks for {describe(what)} of {kind}, no storage")
        if not 0 <= count < 1 << 48:
            raise CheckpointError("is damaged: it has a storage of no valid length")
        dtype = STORAGES[kind]
        memory = self.read_storage(key, count * dtype.itemsize)
        return _Storage(
            torch.frombuffer(memory, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        )

    def _tensor(
        self,
        storage: _Storage,
        offset: int,
        size: tuple,
        stride: tuple,
        grad: bool = False,
        *_: object,
    ) -> Tensor:
        """``grad`` says whether it requires a gradient; its hooks are left out."""
        if not len(size) == len(stride) <= 64 or not all(
            type(n) is int and 0 <= n < 1 << 48 for n in (offset, *size, *stride)
        ):
            raise CheckpointError("is damaged: it has a tensor of no valid size")
        entries = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if entries and last >= len(storage.values):
            raise CheckpointError("is damaged: it has a tensor that is larger than its storage")
        self._add_size(entries * storage.values.element_size(), "it has a tensor that")
        found = storage.values.as_strided(size, stride, offset if entries else 0).to(self.device)
        return found.requires_grad_(grad)


def _dict(_: ValueBuilder, items: Iterable = (), state: object = None) -> dict:
    """A dict; its keys are plain, or tuples of plain ones: others may hash for ever."""
    found = {}
    for key, value in items:
        for part in key if type(key) is tuple else (key,):
            # Equal hashes for very different integers would make a dict as slow as a list.
            if type(part) not in _PLAIN or (type(part) is int and abs(part) >> 60):
                raise UnsafeCheckpointError(f"it has {describe(part)} in a key")
        found[key] = value
    return found


def _ordered_dict(
    builder: ValueBuilder, pairs: Iterable = (), items: Iterable = (), state: object = None
) -> OrderedDict:
    found = OrderedDict(_dict(builder, [*pairs, *items]))
    match state:
        case None:
            pass
        # Module.state_dict() hangs the versions of the modules on its result.
        case {"_metadata": dict(versions), **others} if not others and all(
            isinstance(entry, dict) and type(entry.get("version")) in (int, type(None))
            for entry in versions.values()
        ):
            found._metadata = versions  # type: ignore[attr-defined]  # which it has then
        case _:
            raise UnsafeCheckpointError("it sets attributes of an OrderedDict")
    return found


def _set(builder: ValueBuilder, values: Iterable = (), items: Iterable = ()) -> set:
    return set(_dict(builder, [*((value, None) for value in values), *items]))


def _array_dtype(_: ValueBuilder, code: str, *flags: object, state: object = None) -> np.dtype:
    """Only types whose values are plain bytes: bool, numbers and text, no objects."""
    dtype = np.dtype(code if len(code) < 12 else object)
    if dtype.kind not in "biufcSU" or not dtype.itemsize:
        raise UnsafeCheckpointError(f"it asks for the array type {describe(code)}")
    match state:  # version, order of bytes, and what structured types have
        case None | (_, "<" | "|", None, None, None, *_):
            return dtype
    raise UnsafeCheckpointError("it has an array of big-endian or structured type")


def _array(_: ValueBuilder, *ignored: object, state: object = None) -> np.ndarray:
    match state:
        case (_, tuple(shape), np.dtype() as dtype, is_fortran, bytes(content)):
            flat = np.frombuffer(content, dtype)
            return flat.reshape(shape, order="F" if is_fortran is True else "C").copy()
    raise UnsafeCheckpointError("it has an array without plain content")


def _encode(_: ValueBuilder, text: str, encoding: str) -> bytes:
    """Pickles of arrays encode their bytes so."""
    if encoding != "latin1":
        raise UnsafeCheckpointError(f"it asks for the encoding {describe(encoding)}")
    return text.encode("latin1")


def _attribute(_: ValueBuilder, owner: Name, name: str) -> object:
    """Training logs and one schedule name their functions with ``getattr``."""
    if owner == _HISTORY and name in ("min", "max", "current", "mean"):
        return name  # thrown away: the class has its own
    if owner == _ONE_CYCLE and name in ("_annealing_cos", "_annealing_linear"):
        from mmengine.optim import OneCycleParamScheduler

        return getattr(OneCycleParamScheduler, name)
    raise UnsafeCheckpointError(f"it asks for the attribute {describe(name)} of {owner}")


def _history(_: ValueBuilder, state: object = None) -> HistoryBuffer:
    """Its statistics are the class's own, which no file may change."""
    match state:
        case {
            "_log_history": np.ndarray() as values,
            "_count_history": np.ndarray() as counts,
            "max_length": int(length),
        }:
            return HistoryBuffer(values, counts, length)
    raise UnsafeCheckpointError("it sets attributes of a HistoryBuffer")


_TENSOR = (ValueBuilder._tensor, _Storage, int, tuple, tuple, bool, object)
# What may be called or made, by name: a function and the types of its arguments, of which the last
# may be missing where the function has defaults.
FUNCTIONS: dict[str, tuple] = {
    "storage": (ValueBuilder._storage, str, Name, str, str, int, type(None)),
    "dict": (lambda builder, items=(): _dict(builder, items),),
    "yacs.config.CfgNode": (_dict,),  # the config in the authors' files: only its entries are kept
    "collections.OrderedDict": (_ordered_dict, list | tuple),
    # Schedules keep the epochs at which they step in a Counter.
    "collections.Counter": (lambda builder, counts: Counter(counts), dict),
    "builtins.set": (_set, list | tuple),
    "builtins.bytes": (lambda builder: b"",),  # of empty arrays
    "builtins.getattr": (_attribute, Name, str),
    "_codecs.encode": (_encode, str, str),
    "numpy.dtype": (_array_dtype, str, object, object),
    "numpy.core.multiarray._reconstruct": (_array, object, object, object),
    "numpy.core.multiarray.scalar": (
        lambda builder, dtype, content: np.frombuffer(content, dtype).reshape(())[()],
        *(np.dtype, bytes),
    ),
    "torch.Size": (lambda builder, sides: torch.Size(sides), tuple),
    "torch.device": (lambda builder, *parts: torch.device(*parts), str, int),
    "torch._utils._rebuild_tensor": _TENSOR,
    "torch._utils._rebuild_tensor_v2": _TENSOR,
    "torch._utils._rebuild_parameter": (
        lambda builder, data, requires_grad, hooks: nn.Parameter(data, requires_grad),
        *(Tensor, bool, object),
    ),
    _HISTORY: (_history,),
}
# What a checkpoint may name: the above, and what is only an argument.
NAMES = frozenset({*FUNCTIONS, *DTYPES, *STORAGES, "numpy.ndarray", _ONE_CYCLE})
