"""Files that attack, are damaged or hold something else: refused in one line, and nothing runs."""

import os
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NANO_CONFIG, ROOT, SMALL_ARCH, tool_main
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader

from crossformer_mm import CrossFormer
from crossformer_mm.checkpoints.loader import is_plain
from crossformer_mm.utils.errors import CheckpointError, UnsafeCheckpointError

CONVERT = ROOT / "tools/convert_checkpoint.py"
Builder = Callable[[Path, Path], object]  # given the file, and another that proves that code ran


class Call:
    """Unpickling it calls a function, which its pickle names, with arguments."""

    def __init__(self, function: Callable, *arguments: object, state: object = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self):
        return self.function, self.arguments, self.state


def touch(path: Path) -> Call:
    """Unpickling it makes a file: proof that code ran."""
    return Call(os.system, f"touch {path}")


def saved(make: Callable[[Path], object], zipped: bool = True) -> Builder:
    """What torch.save writes, with what ``make`` returns in it."""
    return lambda path, trace: torch.save(make(trace), path, _use_new_zipfile_serialization=zipped)


def ops(instructions: bytes, **records: bytes) -> Builder:
    """A checkpoint of these pickle instructions; record ``s0`` becomes ``data/0``, a storage."""
    named = {f"w/data/{record[1:]}": data for record, data in {"s0": bytes(4), **records}.items()}
    return zip_of({"w/data.pkl": b"\x80\x04" + instructions + b".", "w/version": b"3", **named})


def zip_of(records: dict[str, bytes], twice: bool = False, **options: object) -> Builder:
    """A zip file; if ``twice``, with two entries of its directory for the first record."""

    def build(path: Path, trace: Path) -> None:
        with zipfile.ZipFile(path, "w", **options) as archive:
            for record, data in records.items():
                archive.writestr(record, data)
            archive.filelist += archive.filelist[:1] * twice

    return build


def with_comment(path: Path) -> None:
    torch.save({"a": torch.ones(1)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"more"


def with_another_directory(path: Path, trace: Path) -> None:
    """The first one has the second as its comment: whoever looks from the end finds that."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", pickle.dumps({"a": 1}, 2))
    content = path.read_bytes()
    end = struct.unpack("<4s4H2LH", content[-22:])
    directory = content[-22 - end[5] : -22]
    second = directory + struct.pack("<4s4H2LH", *end[:6], len(content), 0)
    path.write_bytes(content[:-2] + struct.pack("<H", len(second)) + second)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None and not archive.comment


def raw(content: bytes) -> Builder:
    return lambda path, trace: path.write_bytes(content)


def name(module: str, attribute: str) -> bytes:
    """The instruction that puts what a name stands for on the stack."""
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


FLOATS = name("torch", "FloatStorage")


def storage(count: int, kind: bytes = FLOATS) -> bytes:
    """A storage of ``count`` numbers of four bytes, in record ``data/0``."""
    return b"(" + text("storage") + kind + text("0") + text("cpu") + number(count) + b"tQ"


def tensor(count: int, size: int, stride: int) -> bytes:
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    axes = number(0) + numbers(size) + numbers(stride)
    return rebuild + b"(" + storage(count) + axes + b"\x89NtR"


def array(shape: int, kind: str, content: bytes) -> bytes:
    """The state of a numpy array with one axis."""
    dtype = name("numpy", "dtype") + b"(" + text(kind) + b"\x89\x88tR"
    data = b"B" + struct.pack("<I", len(content)) + content
    return b"(" + number(1) + numbers(shape) + dtype + b"\x89" + data + b"t"


def nested(depth: int, pair: bytes, start: bytes = b")") -> bytes:
    """A pair of twice the same pair, and so on: to show or hash all of it takes for ever."""
    pairs = [b"0" + pair.replace(b"#", bytes([i])) + b"q" + bytes([i + 1]) for i in range(depth)]
    return start + b"q\x00" + b"".join(pairs)


def tuples_in_tuples(depth: int) -> bytes:
    return nested(depth, b"h#h#\x86")


def lists_in_lists(depth: int) -> bytes:
    return nested(depth, b"](h#h#e", b"]")


SCHEDULES = "mmengine.optim.scheduler.param_scheduler"
CURVE = name(SCHEDULES, "OneCycleParamScheduler") + text("_annealing_cos")
GETATTR, SIZE, SET = name("builtins", "getattr"), name("torch", "Size"), name("builtins", "set")
DICT, COUNTER = name("collections", "OrderedDict"), name("collections", "Counter")
HISTORY = name("mmengine.logging.history_buffer", "HistoryBuffer")
ARRAY = name("numpy.core.multiarray", "_reconstruct") + b"()tR"
ENCODED = name("_codecs", "encode") + b"(" + text("a" * 10**5) + text("latin1") + b"tR"
WEIGHT = torch.ones(1)
HUGE = tensor(1, 10**9, 0)  # a thousand million times the same number
NO_STATE = Call(getattr, HistoryBuffer, "mean", state=(None, {"__doc__": "x"}))

# How the file is made, and what is said about it. Some harm without any call of a function, by the
# memory or time of the process.
ATTACKS: dict[str, tuple[Builder, str]] = {
    "at the top": (saved(touch), r"names (posix|nt)\.system"),
    "as config": (saved(lambda t: {"model": {}, "config": touch(t)}), r"\.system"),
    "in an array": (saved(lambda t: np.array([touch(t)], object)), r"\.system|array type"),
    "in a count": (saved(lambda t: Call(Counter, [touch(t)])), r"\.system"),
    "eval": (saved(lambda t: Call(eval, f"open({str(t)!r}, 'w')")), r"names builtins\.eval"),
    # A program, which torch.load would hand to another loader.
    "TorchScript": (lambda p, t: torch.jit.trace(torch.sin, WEIGHT).save(str(p)), "TorchScript"),
    "an attribute": (saved(lambda t: Call(getattr, OneCycleParamScheduler, "get")), "'get' of mm"),
    "the state of a class": (saved(lambda t: NO_STATE), "with other .* state"),
    "a method of a dict": (saved(lambda t: Call(OrderedDict, state={"items": 1})), "OrderedDict"),
    "no metadata": (ops(DICT + b")R}" + text("_metadata") + b"Nsb"), "attributes of an OrderedDi"),
    "INST": (ops(b"(" + text("x") + b"ios\nsystem\n"), "instruction INST"),
    "OBJ": (ops(b"(" + COUNTER + text("a") + b"o"), "instruction OBJ"),
    "NEWOBJ_EX": (ops(b"()}\x92"), "instruction NEWOBJ_EX"),
    "an extension": (ops(b"\x82\x01"), "instruction EXT1"),
    "6 GB of nothing": (ops(b"\x96" + struct.pack("<Q", 6 * 10**9)), "instruction BYTEARRAY8"),
    "a name of a name": (ops(text("torch") + text("_C.x.y") + b"\x93"), r"names torch\._C\.x\.y"),
    "a call of a type": (ops(name("torch", "float32") + b")R"), r"calls torch\.float32"),
    "a call of a call": (ops(GETATTR + b"(" + CURVE + b"tR)R"), r"calls a builtins\.getattr"),
    "other arguments": (ops(HISTORY + b"(" + lists_in_lists(4) + b"tR"), "with other arguments"),
    "an object of a function": (ops(SIZE + b")\x81"), "torch.Size with other arguments"),
    "a state twice": (ops(ARRAY + (array(1, "f8", bytes(8)) + b"b") * 2), "sets the state of a"),
    "2^40 empty texts": (ops(ARRAY + array(2**40, "S0", b"") + b"b"), "for the array type 'S0'"),
    "an item of a storage": (ops(storage(1) + number(1 << 30) + b"Ns"), "other arguments, items"),
    "items of a class": (ops(HISTORY + b"(" + text("mean") + b"Nu"), "changes mmengine"),
    "a size of a tensor": (ops(SIZE + b"(" + tensor(1, 1, 1) + b"tR"), "Size with other arguments"),
    "a set of a tensor": (ops(SET + b"(" + tensor(1, 1, 1) + b"tR"), "set with other arguments"),
    "tuples in a key": (ops(b"}" + tuples_in_tuples(4) + b"Ns"), "a tuple in a key"),
    "tuples in a set": (ops(b"\x8f(" + tuples_in_tuples(4) + b"\x90"), "a tuple in a key"),
    "a tuple as kind": (ops(storage(1, tuples_in_tuples(4))), "storage with other arguments"),
    "no storage": (ops(storage(1).replace(b"storage", b"modules")), "asks for 'modules' of torch"),
    "a storage alone": (ops(storage(1)), "holds a storage as a value"),
    "lines in a name": (ops(text("os") + text("x\ny\x1b[31m") + b"\x93"), r"os\.x\\ny\\x1b"),
    "a long name": (ops(text("a" * 10**6) + text("b") + b"\x93"), r"names a{100}\.\.\., which"),
}


def cut_off(path: Path, trace: Path) -> None:
    torch.save({"a": torch.ones(1000)}, path)
    os.truncate(path, path.stat().st_size * 4 // 5)


def flip_a_bit(path: Path, trace: Path) -> None:
    torch.save({"a": torch.ones(1000)}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


SAFETENSORS = b"\x3c" + bytes(7) + b'{"a":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}'
PICKLE = {"w/data.pkl": bytes(1000), "w/version": b"3"}
OLD_FORMAT = r"is .*before PyTorch 1\.6.* torch\.save"

FAR_LARGER = "is damaged: .* is far larger than the file"
CLASSIFIERS = ("head.weight", "head.fc.weight")

DAMAGED: dict[str, tuple[Builder, str]] = {
    # The formats before PyTorch 1.6, whatever they hold; torch writes out of bounds on some.
    "a hostile file of PyTorch 1.5": (saved(touch, False), OLD_FORMAT),
    "a plain pickle": (lambda p, t: p.write_bytes(pickle.dumps(touch(t))), OLD_FORMAT),
    "empty": (raw(b""), "is empty"),
    "a page": (raw(b"\n<!DOCTYPE html><html>"), "is a web page, .* download the file itself"),
    "Git LFS": (raw(b"version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
    "a tar file": (raw(b"sys_info" + bytes(504)), "is not a PyTorch or safetensors checkpoint"),
    "a folder": (lambda p, t: p.mkdir(), "is not a file"),
    "cut off": (cut_off, "is cut off: the end of the file is missing"),
    "cut safetensors": (raw(SAFETENSORS + bytes(300)), "is not a complete checkpoint: "),
    "a flipped bit": (flip_a_bit, "is damaged: the checksum of .*data/0 is wrong"),
    "another zip": (zip_of({"a": b""}), "is a zip file, but not a checkpoint"),
    "compressed": (zip_of(PICKLE, compression=zipfile.ZIP_DEFLATED), "is compressed"),
    "overlapping": (zip_of(PICKLE, twice=True), "is damaged: its records overlap"),
    "two directories": (with_another_directory, "overlap, or there is more than these"),
    "instructions": (ops(b"N" + b"\x94" * (1 << 19)), "more instructions than its weights need"),
    "a comment": (lambda p, t: with_comment(p), "overlap, or there is more than these"),
    "same names": (ops(b"N", sa=b"a" * 9, sA=b"b"), "two of its records have the same name"),
    "big-endian": (zip_of({**PICKLE, "w/byteorder": b"big"}), "written on a big-endian machine"),
    "no instruction": (ops(b"\xff"), "is not a complete checkpoint: byte 255 is no pickle instr"),
    "a short storage": (ops(tensor(1000, 1, 1)), "its storage '0' has not 4000 bytes"),
    "tuples as kind": (ops(storage(1, tuples_in_tuples(60))), FAR_LARGER),
    "tuples as name": (ops(HUGE.replace(text("0"), tuples_in_tuples(60))), FAR_LARGER),
    "tuples in tuples as key": (ops(b"}" + tuples_in_tuples(60) + b"Ns"), FAR_LARGER),
    "tuples in tuples in a set": (ops(b"\x8f(" + tuples_in_tuples(60) + b"\x90"), FAR_LARGER),
    "lists in lists": (ops(GETATTR + b"(" + lists_in_lists(60) + text("x") + b"tR"), FAR_LARGER),
    "a size of 4 GB": (ops(SIZE + b"(" + HUGE + b"tR"), FAR_LARGER),
    "a dict of 4 GB": (ops(DICT + b"(" + HUGE + b"tR"), FAR_LARGER),
    "a storage of 2^60": (ops(tensor(1 << 60, 1, 1)), "has a storage of no valid length"),
    "a tensor past its storage": (ops(tensor(1, 2, 1)), "is larger than its storage"),
    "a tensor of 4 GB": (ops(HUGE), "has a tensor that is far larger than the file"),
    "a text of 6 GB": (ops(ENCODED + b"q\x00](" + b"h\x00" * 60_000 + b"e"), "is far larger than"),
    "lists of 2^60": (ops(lists_in_lists(60)), "what it holds is far larger than the file"),
    "a deep list": (ops(b"]" * 1000 + b"a" * 999), "is nested too deeply"),
    "a number": (saved(lambda t: 3), "holds no state dict"),
    "an array": (saved(lambda t: {"model": {"a": np.ones(2)}}), "'a' is a ndarray"),
    "two classifiers": (saved(lambda t: dict.fromkeys(CLASSIFIERS, WEIGHT)), "under two names"),
    "doubled": (saved(lambda t: {"a": WEIGHT, "module.a": WEIGHT}), "with and without 'module.'"),
}


@pytest.mark.fault("checkpoints that attack or are damaged")
@pytest.mark.families
@pytest.mark.parametrize("name", [*ATTACKS, *DAMAGED])
def test_a_file_is_refused_in_one_line_and_does_nothing(tmp_path, name):
    make, said = {**ATTACKS, **DAMAGED}[name]
    path, trace = tmp_path / "w.pth", tmp_path / "ran"
    make(path, trace)
    if name in ATTACKS:
        said = f"was refused, and nothing in it was run: .*({said})"
    init_cfg = dict(type="Pretrained", checkpoint=str(path))
    with pytest.raises(CheckpointError, match=rf"w\.pth .*{said}") as caught:
        CrossFormer(SMALL_ARCH, init_cfg=init_cfg).init_weights()
    assert isinstance(caught.value, UnsafeCheckpointError) == (name in ATTACKS)
    with pytest.raises(SystemExit, match=rf"^error: .*w\.pth .*{said}") as ended:
        tool_main(CONVERT, path, tmp_path / "new.pth")
    assert str(ended.value).isprintable() and len(str(ended.value)) < 1000
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


@pytest.mark.fault("checkpoints that attack or are damaged")
@pytest.mark.parametrize("option", ["--pretrained", "--resume", "test"])
def test_a_hostile_file_ends_the_tools_in_one_line(toy_coco, tmp_path, option):
    path, trace = tmp_path / "hostile.pth", tmp_path / "ran"
    ATTACKS["as config"][0](path, trace)
    tool, options = ("test", [path]) if option == "test" else ("train", [option, path])
    options += ["--work-dir", tmp_path / "work", "--cfg-options", f"data_root={toy_coco}"]
    with pytest.raises(SystemExit, match=r"^error: checkpoint .*\.system[^\n]*$"):
        tool_main(ROOT / f"tools/{tool}.py", NANO_CONFIG, *options)
    assert not trace.exists()


def test_the_text_that_mmengine_writes_of_a_config_stays():
    text = Config.fromfile(NANO_CONFIG).pretty_text
    assert "custom_imports" in text and is_plain(text)


@pytest.mark.fault("checkpoints that attack or are damaged")
@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "model = __import__('os').system('true')",
        "model = dict(type=open('file'))",
        "model = [x for x in range(9)]",
        "model = dict(a=(lambda: 1)())",
        "_base_ = 'other.py'",
        "_base_: str = 'other.py'",
        "model.a = 1",
        "model = f'{print()}'",
        "model = 1 if True else 2",
        "dict = print",
        "(",
        "model = " + "[" * 10_000,
        "\0",
        7,
    ],
)
def test_anything_else_is_left_out_before_an_inferencer_sees_it(tmp_path, text):
    saved = dict(
        state_dict=dict(a=torch.ones(1)),
        meta=dict(cfg=text, config=text, epoch=3),
        message_hub=dict(runtime_info=dict(cfg=text, iter=5), log_scalars={}),
    )
    torch.save(saved, tmp_path / "w.pth")
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / "w.pth"))
    assert loaded["meta"] == dict(epoch=3)
    assert loaded["message_hub"] == dict(runtime_info=dict(iter=5), log_scalars={})
