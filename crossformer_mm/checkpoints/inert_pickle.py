"""A pickle read as data: what it names, calls and fills becomes nodes, and nothing is called.

Python's own unpickler, with most of its instructions removed and the others replaced. It does not
hash, compare or convert what it reads either: :mod:`crossformer_mm.checkpoints.values` makes values
of the nodes, and knows which names there may be.
"""

import pickle
import pickletools
from collections.abc import Callable, Collection, Iterable
from io import BytesIO

from crossformer_mm.utils.errors import UnsafeCheckpointError, one_line

# What protocols 2 to 5 write for plain values and for the calls of weights and training state.
_INSTRUCTIONS = """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4
    BINFLOAT BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES
    SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST BINGET LONG_BINGET
    BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL
""".split()  # noqa: SIM905


class Name(str):
    """The name of a class or function, ``module.name``; not looked up."""

    __slots__ = ()


class Node:
    """A dict, a set, or an object that a call would make.

    Attributes:
        name: ``'dict'``, ``'set'``, ``'storage'``, or what would be called.
        args: Its arguments.
        items: Pairs of a dict, or what a set has; keys are not hashed.
        state: What would be set as its state.
    """

    def __init__(self, name: str, args: tuple = ()) -> None:
        self.name, self.args = name, args
        self.items: list = []
        self.state: object = None


def describe_node(value: object) -> str:
    """Describe a node or value of a pickle, shortly."""
    if isinstance(value, Name):
        return one_line(value, 100)
    if isinstance(value, Node):
        return f"a {one_line(value.name, 100)}"
    if isinstance(value, str):
        return repr(one_line(value, 100))
    return f"a {type(value).__name__}"


class _Instructions(dict):
    """Instructions by code; an error names one that is not there."""

    def __missing__(self, code: int) -> Callable:
        known = pickletools.code2op.get(chr(code))
        if known is None:
            raise pickle.UnpicklingError(f"byte {code} is no pickle instruction")
        raise UnsafeCheckpointError(f"it has the pickle instruction {known.name}")


class _InertUnpickler(pickle._Unpickler):
    names: Collection[str]

    def find_class(self, module: str, name: str) -> Name:
        # Python 2 and numpy 1 have other names for the same.
        full = f"{module}.{name}".replace("__builtin__.", "builtins.", 1)
        full = full.replace("numpy._core.", "numpy.core.", 1)
        if full not in self.names:
            raise UnsafeCheckpointError(f"it names {one_line(full, 100)}")
        return Name(full)

    def call(self) -> None:
        args, function = self.stack.pop(), self.stack[-1]
        if type(function) is not Name or type(args) is not tuple:
            raise UnsafeCheckpointError(f"it calls {describe_node(function)}")
        self.stack[-1] = Node(function, args)

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is not Node or target.state is not None:
            raise UnsafeCheckpointError(f"it sets the state of {describe_node(target)}")
        target.state = state

    def persistent_id(self) -> None:
        arguments = self.stack[-1]
        if type(arguments) is not tuple:
            raise UnsafeCheckpointError(f"it asks for {describe_node(arguments)}")
        self.stack[-1] = Node("storage", arguments)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _add_items(self.stack[-1], [(key, value)])

    def set_items(self) -> None:
        values = self.pop_mark()
        _add_items(self.stack[-1], zip(values[::2], values[1::2], strict=True))

    def add_items(self) -> None:
        values = self.pop_mark()
        if type(self.stack[-1]) is not Node or self.stack[-1].name != "set":
            raise UnsafeCheckpointError(f"it changes {describe_node(self.stack[-1])}")
        self.stack[-1].items += values

    def append_one(self) -> None:
        _extend(self.stack[-2], [self.stack.pop()])

    def append_some(self) -> None:
        values = self.pop_mark()
        _extend(self.stack[-1], values)

    dispatch = _Instructions(
        (code, pickle._Unpickler.dispatch[code])
        for name in _INSTRUCTIONS
        for code in getattr(pickle, name)
    )
    dispatch |= {
        pickle.EMPTY_DICT[0]: lambda self: self.append(Node("dict")),
        pickle.EMPTY_SET[0]: lambda self: self.append(Node("set")),
        pickle.REDUCE[0]: call,
        pickle.NEWOBJ[0]: call,
        pickle.BUILD[0]: build,
        pickle.BINPERSID[0]: persistent_id,
        pickle.SETITEM[0]: set_item,
        pickle.SETITEMS[0]: set_items,
        pickle.ADDITEMS[0]: add_items,
        pickle.APPEND[0]: append_one,
        pickle.APPENDS[0]: append_some,
    }


def _add_items(target: object, pairs: Iterable) -> None:
    if type(target) is not Node or target.name in ("set", "storage"):
        raise UnsafeCheckpointError(f"it changes {describe_node(target)}")
    target.items += pairs


def _extend(target: object, values: list) -> None:
    if type(target) is not list:
        raise UnsafeCheckpointError(f"it changes {describe_node(target)}")
    target += values


def read_pickle(data: bytes, names: Collection[str]) -> object:
    """Read a pickle of protocol 2 to 5 as nodes, lists, tuples and plain values.

    Args:
        data: The pickle.
        names: The classes and functions that it may name, as ``module.name``.

    Raises:
        UnsafeCheckpointError: If it has another name, or an instruction that weights do not need.
        Exception: Of nearly any kind, if it is damaged.
    """
    unpickler = _InertUnpickler(BytesIO(data))
    unpickler.names = names
    return unpickler.load()
