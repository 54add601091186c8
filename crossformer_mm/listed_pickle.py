"""An unpickler that knows the names of a closed list, and the instructions that weights need.

See :mod:`crossformer_mm.closed_list`.
"""

import pickle
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Callable
from types import SimpleNamespace

from torch.serialization import StorageType

from crossformer_mm.checkpoint_errors import (
    CheckpointError,
    UnsafeCheckpointError,
    describe,
    one_line,
)
from crossformer_mm.closed_list import (
    ARGUMENTS,
    CLASSES,
    FUNCTIONS,
    InertConfig,
    check_keys,
    set_state,
)

# What protocols 2 to 5 write for plain values; REDUCE and those after it are guarded below.
_INSTRUCTIONS = """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4
    BINFLOAT BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES
    SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST EMPTY_DICT
    EMPTY_SET BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL
    REDUCE NEWOBJ BUILD APPEND APPENDS ADDITEMS SETITEM SETITEMS BINPERSID
""".split()  # noqa: SIM905
_DICTS = (dict, OrderedDict, Counter, InertConfig)


class _Instructions(dict):
    """Instructions by code; an error names one that is not there."""

    def __missing__(self, code: int) -> Callable:
        known = pickletools.code2op.get(chr(code))
        if known is None:
            raise pickle.UnpicklingError(f"byte {code} is no pickle instruction")
        raise UnsafeCheckpointError(f"it has the pickle instruction {known.name}")


class _ListedUnpickler(pickle._Unpickler):
    """The standard library's unpickler in Python, with its instructions checked."""

    # By key, how many bytes the file has for a storage; None if it does not say so beforehand.
    sizes: dict[str, int] | None
    # The keys of the storages that the pickle names.
    named: set[str]

    dispatch = _Instructions(
        (code, run)
        for name in _INSTRUCTIONS
        for code in getattr(pickle, name)
        for run in [pickle._Unpickler.dispatch[code]]
    )

    def find_class(self, module: str, name: str) -> object:
        # Files are written with Python 2's names, where it has others.
        module = IMPORT_MAPPING.get(module, module)
        key = NAME_MAPPING.get((module, name), (module, name))
        for listed in (FUNCTIONS, CLASSES, ARGUMENTS):
            if key in listed:
                return listed[key]
        raise UnsafeCheckpointError(f"it names {one_line('.'.join(key), 100)}")

    def load_reduce(self) -> None:
        function = self.stack[-2]
        if not any(function is listed for listed in FUNCTIONS.values()):
            raise UnsafeCheckpointError(f"it calls {describe(function)}")
        super().load_reduce()

    def load_newobj(self) -> None:
        kind, arguments = self.stack[-2:]
        if not any(kind is listed for listed in CLASSES.values()) or arguments != ():
            raise UnsafeCheckpointError(f"it makes an object of {describe(kind)}")
        super().load_newobj()

    def load_build(self) -> None:
        state = self.stack.pop()
        set_state(self.stack[-1], state)

    def load_append(self) -> None:
        _check_type(self.stack[-2], list)
        super().load_append()

    def load_appends(self) -> None:
        _check_type(self.metastack[-1][-1], list)
        super().load_appends()

    def load_additems(self) -> None:
        _check_type(self.metastack[-1][-1], set)
        check_keys(self.stack)
        super().load_additems()

    def load_setitem(self) -> None:
        _check_type(self.stack[-3], *_DICTS)
        check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_type(self.metastack[-1][-1], *_DICTS)
        check_keys(self.stack[::2])
        super().load_setitems()

    def load_binpersid(self) -> None:
        kind, storage_type, key, _, count = self.stack[-1][:5]
        if kind not in ("storage", b"storage") or not isinstance(storage_type, StorageType):
            raise UnsafeCheckpointError(f"it asks for {describe(kind)}, which is no storage")
        needed = count * storage_type.dtype.itemsize
        if self.sizes is not None and self.sizes.get(key) != needed:
            raise CheckpointError(f"is damaged: its storage {describe(key)} has not {needed} bytes")
        self.named.add(key)
        super().load_binpersid()

    for _run in (
        *(load_reduce, load_newobj, load_build, load_append, load_appends, load_additems),
        *(load_setitem, load_setitems, load_binpersid),
    ):
        dispatch[getattr(pickle, _run.__name__.removeprefix("load_").upper())[0]] = _run


def _check_type(target: object, *kinds: type) -> None:
    if type(target) not in kinds:
        raise UnsafeCheckpointError(f"it changes {describe(target)}")


def pickle_of_one_file(sizes: dict[str, int] | None = None) -> SimpleNamespace:
    """What :func:`torch.load` takes as ``pickle_module``, to read one file.

    Args:
        sizes: Bytes of each storage by its key, of a zip file; torch 2.1 does not compare them.
    """
    state = dict(sizes=sizes, named=set())
    unpickler = type("_UnpicklerOfOneFile", (_ListedUnpickler,), state)

    def load(file: object, **kwargs: object) -> object:
        value = unpickler(file, **kwargs).load()
        # In the older format, a list of the storages that follow comes after the pickle proper.
        if isinstance(value, list) and not unpickler.named <= set(value):
            raise CheckpointError("is damaged: it names tensors whose values are not there")
        return value

    return SimpleNamespace(__name__="listed_pickle", Unpickler=unpickler, load=load)
