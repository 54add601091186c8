"""A pickle read as data: what it names, calls and fills becomes nodes, and nothing is called.

Python's own unpickler, with most of its instructions removed and some replaced. It does not hash,
compare or convert what it reads either: :mod:`crossformer_mm.checkpoints.values` makes values of
the nodes, and knows which names there may be.
"""

import pickle
import pickletools
from collections.abc import Callable, Collection
from io import BytesIO
from typing import Any

from crossformer_mm.utils.errors import (
    CheckpointError,
    UnsafeCheckpointError,
    describe,
    one_line,
)

# What protocols 2 to 5 write for plain values, and for what fills lists and nodes.
_INSTRUCTIONS = """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4
    BINFLOAT BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES
    SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST BINGET LONG_BINGET
    BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL BINPERSID APPEND APPENDS SETITEM SETITEMS
    ADDITEMS
""".split()  # noqa: SIM905


class Name(str):
    """The name of a class or function, ``module.name``; not looked up."""

    __slots__ = ()

    def __setitem__(self, key: object, value: object) -> None:
        raise UnsafeCheckpointError(f"it changes {self}")


class Node:
    """A dict, a set, or an object that a call would make."""

    __slots__ = ("args", "items", "name", "state")

    def __init__(self, name: str, args: Any = ()) -> None:
        self.name, self.args = name, args  # "dict", "storage", or what would be called
        # Pairs of a dict, or of what a set has and None; keys are not hashed.
        self.items: list[tuple[object, object]] = []
        self.state: object = None  # what would be set as its state

    def __setitem__(self, key: object, value: object) -> None:
        self.items.append((key, value))

    def add(self, value: object) -> None:
        """Add to a set."""
        self[value] = None


def describe_node(value: object) -> str:
    """Describe a node or value of a pickle, shortly."""
    if isinstance(value, Name):
        return str(value)
    return f"a {value.name}" if isinstance(value, Node) else describe(value)


class _Instructions(dict):
    """Instructions by code; an error names one that is not there, or says that it is one too many.

    Each takes memory, a dict a hundred times the byte that asks for it.
    """

    left = 0

    def __getitem__(self, code: int) -> Callable:
        self.left -= 1
        if self.left < 0:
            raise CheckpointError("is damaged: it has more instructions than its weights need")
        return super().__getitem__(code)

    def __missing__(self, code: int) -> Callable:
        known = [each.name for each in pickletools.opcodes if each.code == chr(code)]
        if not known:
            raise pickle.UnpicklingError(f"byte {code} is no pickle instruction")
        raise UnsafeCheckpointError(f"it has the pickle instruction {known[0]}")


class _InertUnpickler(pickle._Unpickler):
    names: Collection[str]
    stack: list

    def find_class(self, module: str, name: str) -> Name:
        # Python 2 and numpy 1 have other names for the same.
        full = f"{module}.{name}".replace("__builtin__.", "builtins.", 1)
        full = full.replace("numpy._core.", "numpy.core.", 1)
        if full not in self.names:
            raise UnsafeCheckpointError(f"it names {one_line(full, 100)}")
        return Name(full)

    def persistent_load(self, arguments: object) -> Node:
        return Node("storage", arguments)

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

    dispatch = _Instructions(
        (code, pickle._Unpickler.dispatch[code])
        for name in _INSTRUCTIONS
        for code in getattr(pickle, name)
    )
    dispatch |= {
        pickle.EMPTY_DICT[0]: lambda self: self.append(Node("dict")),
        pickle.EMPTY_SET[0]: lambda self: self.append(Node("builtins.set")),
        pickle.REDUCE[0]: call,
        pickle.NEWOBJ[0]: call,
        pickle.BUILD[0]: build,
    }


def read_pickle(data: bytes, names: Collection[str], limit: int) -> object:
    """Read a pickle of protocol 2 to 5 as nodes, lists, tuples and plain values.

    Args:
        data: The pickle.
        names: The classes and functions that it may name, as ``module.name``.
        limit: The most instructions that it may have.

    Raises:
        UnsafeCheckpointError: If it has another name, or an instruction that weights do not need.
        CheckpointError: If it has too many instructions.
        Exception: Of nearly any kind, if it is damaged.
    """
    unpickler = _InertUnpickler(BytesIO(data))
    unpickler.names = names
    instructions = _Instructions(_InertUnpickler.dispatch)
    instructions.left = limit
    unpickler.dispatch = instructions  # type: ignore[misc]  # they count for this file alone
    return unpickler.load()
