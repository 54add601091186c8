"""Loading weights: what fits, what is refused, and that nothing in a file is run."""

import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import old_checkpoints as old
import pytest
import torch
from conftest import ROOT, SMALL_ARCH, tool_main
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler
from mmengine.registry import PARAM_SCHEDULERS

from crossformer_mm import CrossFormer
from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.checkpoints.sources import find_file
from crossformer_mm.engine.launch import check_file
from crossformer_mm.engine.resume import find_checkpoint_to_resume
from crossformer_mm.utils.errors import CheckpointError, UnsafeCheckpointError

pytestmark = pytest.mark.families

CONVERT = ROOT / "tools/convert_checkpoint.py"


def pretrained(path: Path, **kwargs) -> CrossFormer:
    """A backbone that is told to load ``path``."""
    backbone = CrossFormer(
        **{"arch": SMALL_ARCH, **kwargs}, init_cfg=dict(type="Pretrained", checkpoint=str(path))
    )
    backbone.init_weights()
    return backbone


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_checkpoints_of_every_layout_load(tmp_path, prefix, key):
    source = CrossFormer(SMALL_ARCH, final_norm=True)
    weights = {prefix + name: value for name, value in source.state_dict().items()}
    weights[prefix.replace("backbone.", "") + "head.weight"] = torch.zeros(10, 128)
    weights[prefix + "layers.0.blocks.0.attn.biases"] = torch.zeros(49, 2)
    weights[prefix + "layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    weights[prefix + "layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    torch.save(weights if key is None else {key: weights, "epoch": 3}, tmp_path / "w.pth")
    assert_same_weights(pretrained(tmp_path / "w.pth", final_norm=True), source)
    dense = pretrained(tmp_path / "w.pth")
    del source.norm
    assert_same_weights(dense, source)


def test_the_authors_own_file_loads_and_the_log_says_what_was_dropped(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(
        "crossformer_mm.models.state_dict.print_log", lambda line, **kw: said.append(line)
    )
    weights = old.classifier_weights(SMALL_ARCH, classes=3)
    old.save_classifier(tmp_path / "w.pth", {**weights, **old.v1_buffers(weights)})
    backbone = pretrained(tmp_path / "w.pth")
    own = backbone.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in own.items())
    assert said == [
        f"Backbone: all {len(own)} weights match those in {tmp_path / 'w.pth'}; dropped by rule: "
        "2 classifier, 2 final norm"
    ]


def test_another_architecture_is_refused_and_the_right_one_named(tmp_path):
    torch.save(CrossFormer("tiny").state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(ValueError, match=r"tiny\.pth does not fit.*arch 'tiny'.*missing.*shape"):
        pretrained(tmp_path / "tiny.pth", arch="small")


def test_a_missing_weight_is_named_and_nothing_is_loaded(tmp_path):
    weights = CrossFormer(SMALL_ARCH).state_dict()
    del weights["layers.2.blocks.1.mlp.fc1.bias"]
    torch.save(weights, tmp_path / "w.pth")
    backbone = CrossFormer(
        SMALL_ARCH, init_cfg=dict(type="Pretrained", checkpoint=f"{tmp_path}/w.pth")
    )
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=r"1 missing: layers\.2\.blocks\.1\.mlp\.fc1\.bias"):
        backbone.init_weights()
    assert all(torch.equal(before[n], v) for n, v in backbone.state_dict().items())


class Touch:
    """Unpickling it makes a file: proof that code ran."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Call:
    """Unpickling it calls a function, which its pickle names, with arguments."""

    def __init__(self, function: Callable, *arguments: object, state: object = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self):
        return self.function, self.arguments, self.state


def rewrite(path: Path, **records: bytes) -> None:
    """Replace or add records of a zip file; a name stands for ``ARCHIVE/name.pkl``."""
    content = {f"w/{name}.pkl": data for name, data in records.items()}
    with zipfile.ZipFile(path) as archive:
        content = {record: archive.read(record) for record in archive.namelist()} | content
    with zipfile.ZipFile(path, "w") as archive:
        for record, data in content.items():
            archive.writestr(record, data)


def save(path: Path, content: object, zipped: bool = True) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


def legacy_with_hostile_part(path: Path, part: int, trace: Path) -> None:
    """The old format is five pickles in a row, then the tensors: make one of them hostile."""
    save(path, {"a": torch.ones(2)}, zipped=False)
    with path.open("rb") as file:
        parts = []
        for _ in range(5):
            start = file.tell()
            unpickler = pickle.Unpickler(file)
            unpickler.persistent_load = lambda pid: torch.ones(2).storage()
            unpickler.load()
            parts.append((start, file.tell()))
        start, stop = parts[part]
    data = path.read_bytes()
    path.write_bytes(data[:start] + pickle.dumps(Touch(trace), protocol=2) + data[stop:])


def tar_of_old(path: Path, trace: Path, first: str = "sys_info") -> None:
    """The format before the old one: a tar file of pickles, which begins with a name."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin1") as archive:
        for name in (first, "storages", "tensors", "pickle"):
            data = pickle.dumps(Touch(trace), protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def script(path: Path) -> None:
    """A TorchScript archive: a program, which torch.load would hand to another loader."""

    class Identity(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.trace(Identity(), torch.ones(1)).save(str(path))


def zip_of_pickle(path: Path, instructions: bytes, **records: bytes) -> None:
    """A checkpoint whose pickle is written by hand; storage ``s0`` becomes ``data/0``."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x04" + instructions + b".")
        archive.writestr("w/version", "3\n")
        for name, data in records.items():
            archive.writestr(f"w/data/{name[1:]}", data)


def name(module: str, attribute: str) -> bytes:
    """The instruction that puts what a name stands for on the stack."""
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def storage(count: int, kind: str = "FloatStorage") -> bytes:
    """The instructions for a storage of ``count`` numbers, record ``data/0``."""
    parts = [text("storage"), name("torch", kind), text("0"), text("cpu"), number(count)]
    return b"(" + b"".join(parts) + b"tQ"


def command(trace: Path) -> bytes:
    return b"(" + text(f"touch {trace}")


def lists_in_lists(depth: int) -> bytes:
    """A list of twice the same list, and so on: to show or hash all of it takes for ever."""
    pairs = [b"0](h" + bytes([i, ord("h"), i]) + b"eq" + bytes([i + 1]) for i in range(depth)]
    return b"]q\x00" + b"".join(pairs)


def tuples_in_tuples(depth: int) -> bytes:
    pairs = [b"0h" + bytes([i, ord("h"), i]) + b"\x86q" + bytes([i + 1]) for i in range(depth)]
    return b")q\x00" + b"".join(pairs)


def array(shape: int, content: bytes) -> bytes:
    """The state of a numpy array with one axis."""
    dtype = name("numpy", "dtype") + b"(" + text("f8") + b"\x89\x88tR"
    data = b"B" + struct.pack("<I", len(content)) + content
    return b"(" + number(1) + b"(" + number(shape) + b"t" + dtype + b"\x89" + data + b"t"


def tar_and_zip(path: Path, trace: Path) -> None:
    """A zip file after a tar file, of which torch.load would unpack a link to another file."""
    victim = trace.with_name("victim")
    victim.touch(mode=0o600)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("PK"))
        link = tarfile.TarInfo("storages")
        link.type, link.linkname, link.mode = tarfile.LNKTYPE, str(victim), 0o777
        archive.addfile(link)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("w/data.pkl", b"\x80\x04N.")
        archive.writestr("w/version", "3\n")


HISTORY = name("mmengine.logging.history_buffer", "HistoryBuffer")
EMPTY_ARRAY = name("numpy.core.multiarray", "_reconstruct") + b"()tR"
# Instructions that plain weights do not have; some of them harm the process without any call of a
# function, by its memory or time.
INSTRUCTIONS = {
    "INST": (lambda t: command(t) + b"ios\nsystem\n", "instruction INST"),
    "OBJ": (lambda t: b"(" + name("collections", "Counter") + text("a") + b"o", "instruction OBJ"),
    "NEWOBJ_EX with an address": (
        lambda t: b"(" + number(8) + b"t}" + text("allocator") + number(4660) + b"s\x92",
        "instruction NEWOBJ_EX",
    ),
    "an extension": (lambda t: b"\x82\x01", "instruction EXT1"),
    "a name of a name": (
        lambda t: text("torch") + text("serialization.os.system") + b"\x93" + command(t) + b"tR",
        r"names torch\.serialization\.os\.system",
    ),
    "a module": (lambda t: name("torch", "_inductor"), r"names torch\._inductor"),
    "an untyped storage": (
        lambda t: name("torch", "UntypedStorage") + b"(" + number(1 << 40) + b"tR",
        r"names torch\.UntypedStorage",
    ),
    "a call of a type": (lambda t: name("torch", "float32") + b")R", r"calls torch\.float32"),
    "a call of a class": (
        lambda t: HISTORY + b"(" + lists_in_lists(40) + b"tR",
        "HistoryBuffer with other arguments",
    ),
    "a call of a schedule's curve": (
        lambda t: (
            name("builtins", "getattr")
            + b"("
            + name("mmengine.optim.scheduler.param_scheduler", "OneCycleParamScheduler")
            + text("_annealing_cos")
            + b"tR(NNNtR"
        ),
        r"calls a builtins\.getattr",
    ),
    "an object of a function": (
        lambda t: name("torch", "Size") + b")\x81",
        r"calls torch\.Size with other",
    ),
    "an array that is filled twice": (
        lambda t: EMPTY_ARRAY + array(2, bytes(16)) + b"b" + array(1, bytes(8)) + b"b",
        "sets the state of a",
    ),
    "an item of a storage": (
        lambda t: storage(1) + number(1 << 30) + b"Ns",
        "changes a storage",
    ),
    "items of a class": (
        lambda t: HISTORY + b"(" + text("mean") + b"Nu",
        r"changes mmengine\S*HistoryBuffer",
    ),
    "lists in lists": (
        lambda t: name("builtins", "getattr") + b"(" + lists_in_lists(60) + text("x") + b"tR",
        "attribute 'x' of a list",
    ),
    "tuples in tuples": (lambda t: b"}" + tuples_in_tuples(60) + b"Ns", "a tuple in a key"),
    "a tuple in a set": (lambda t: b"\x8f(" + tuples_in_tuples(60) + b"\x90", "a tuple in a key"),
    "something stored elsewhere": (
        lambda t: b"(" + text("module") + b"NNNNtQ",
        "asks for 'module', which is no storage",
    ),
    "lines in a name": (
        lambda t: text("os") + text("system\nerror: all is well\x1b[31m") + b"\x93",
        r"names os\.system\\nerror: all is well\\x1b",
    ),
    "a long name": (
        lambda t: text("a" * 10**6) + text("b") + b"\x93",
        r"names a{100}\.\.\., which",
    ),
}

# name: how the file is made, given its path and the file that would prove that code ran, and what
# is said about it.
HOSTILE = {
    "top of a zip": (lambda p, t: save(p, Touch(t)), r"names (posix|nt)\.system"),
    "meta": (lambda p, t: save(p, {"meta": [Touch(t)], "state_dict": {}}), r"\.system"),
    "config": (lambda p, t: save(p, {"model": {}, "config": Touch(t)}), r"\.system"),
    "among weights": (lambda p, t: save(p, {"a": torch.ones(2), "b": Touch(t)}), r"\.system"),
    "optimizer": (lambda p, t: save(p, {"optimizer": {"state": {0: Touch(t)}}}), r"\.system"),
    "a key": (lambda p, t: save(p, {"model": {"a": {Touch(t).__reduce__()[0]: 1}}}), r"\.system"),
    "eval": (
        lambda p, t: save(p, Call(eval, f"__import__('os').system('touch {t}')")),
        r"names builtins\.eval",
    ),
    "an attribute": (lambda p, t: save(p, Call(getattr, torch.Size, "__init__")), "__init__"),
    "an attribute of a schedule": (
        lambda p, t: save(p, Call(getattr, OneCycleParamScheduler, "__init__")),
        "__init__",
    ),
    "a count of anything": (lambda p, t: save(p, Call(Counter, [Touch(t)])), r"\.system"),
    "a subprocess": (
        lambda p, t: save(p, Call(subprocess.check_output, ["touch", str(t)])),
        r"names \w+\.check_output",
    ),
    "state of a class": (
        lambda p, t: save(p, Call(getattr, HistoryBuffer, "mean", state=(None, {"__doc__": "x"}))),
        "sets the state of",
    ),
    "a method of an object": (
        lambda p, t: save(p, Call(OrderedDict, state={"items": 1})),
        "attributes of an OrderedDict",
    ),
    "an array of objects": (
        lambda p, t: save(p, {"a": np.array([Touch(t)], dtype=object)}),
        r"\.system|array type",
    ),
    "TorchScript": (lambda p, t: script(p), "TorchScript"),
    **{
        key: (lambda p, t, make=make: zip_of_pickle(p, make(t), s0=bytes(4)), said)
        for key, (make, said) in INSTRUCTIONS.items()
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_and_does_nothing(monkeypatch, tmp_path, name):
    make, said = HOSTILE[name]
    trace, path = tmp_path / "ran", tmp_path / "w.pth"
    make(path, trace)
    trace.unlink(missing_ok=True)
    with pytest.raises(
        UnsafeCheckpointError, match=rf"w\.pth was refused, and nothing in it was run: .*({said})"
    ):
        load_file(path)
    with pytest.raises(UnsafeCheckpointError, match=said):
        pretrained(path)
    with pytest.raises(SystemExit, match=rf"^error: .*{said}") as ended:
        tool_main(monkeypatch, CONVERT, path, tmp_path / "new.pth")
    assert str(ended.value).isprintable() and len(str(ended.value)) < 1000
    assert not trace.exists() and not (tmp_path / "new.pth").exists()


# The formats before PyTorch 1.6, whatever they hold; torch itself writes out of bounds on some.
OLD_FORMATS = {
    "harmless": lambda p, t: save(p, {"a": torch.ones(2)}, False),
    "top of a legacy file": lambda p, t: save(p, Touch(t), False),
    "first part of a legacy file": lambda p, t: legacy_with_hostile_part(p, 0, t),
    "third part of a legacy file": lambda p, t: legacy_with_hostile_part(p, 2, t),
    "last part of a legacy file": lambda p, t: legacy_with_hostile_part(p, 4, t),
    "a plain pickle": lambda p, t: p.write_bytes(pickle.dumps(Touch(t))),
    "a tar file": lambda p, t: tar_of_old(p, t, "\x80"),
}


@pytest.mark.parametrize("name", OLD_FORMATS)
def test_an_old_format_is_refused_with_what_to_do(monkeypatch, tmp_path, name):
    OLD_FORMATS[name](tmp_path / "w.pth", tmp_path / "ran")
    (tmp_path / "ran").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"w\.pth is .*before PyTorch 1\.6.* torch\.save"):
        load_file(tmp_path / "w.pth")
    with pytest.raises(SystemExit, match="^error: .*w.pth is a plain pickle or "):
        tool_main(monkeypatch, CONVERT, tmp_path / "w.pth", tmp_path / "new.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_nothing_of_a_tar_before_a_zip_is_unpacked(tmp_path):
    tar_and_zip(tmp_path / "w.pth", tmp_path / "ran")
    with pytest.raises(CheckpointError, match="is not a PyTorch or safetensors checkpoint"):
        load_file(tmp_path / "w.pth")
    assert (tmp_path / "victim").stat().st_mode & 0o777 == 0o600
    with suppress(Exception):  # otherwise the test could not fail
        torch.load(tmp_path / "w.pth", weights_only=False)
    assert (tmp_path / "victim").stat().st_mode & 0o777 == 0o777


def test_the_hostile_files_would_run(tmp_path):
    # Otherwise the test above could not fail.
    makers = {name: make for name, (make, _) in HOSTILE.items()} | OLD_FORMATS
    for name in ("top of a zip", "config", "third part of a legacy file", "eval", "a subprocess"):
        trace = tmp_path / "ran"
        makers[name](tmp_path / "w.pth", trace)
        trace.unlink(missing_ok=True)
        with suppress(Exception):  # after it ran: what is left is no checkpoint
            torch.load(tmp_path / "w.pth", weights_only=False)
        assert trace.exists(), name
        trace.unlink()


# Arguments of mmengine's schedules that have no default.
SCHEDULES = {
    "CosineAnnealing": dict(T_max=5),
    "CosineRestart": dict(periods=[2, 3], restart_weights=[1, 0.5], eta_min=0.0),
    "Exponential": dict(gamma=0.5),
    "MultiStep": dict(milestones=[2, 2, 3]),
    "OneCycle": dict(eta_max=1.0, total_steps=10, anneal_strategy="linear"),
    "ReduceOnPlateau": dict(monitor="loss"),
    "Step": dict(step_size=2),
}
# Without those that the libraries add.
KINDS = sorted(
    name
    for name, kind in PARAM_SCHEDULERS.module_dict.items()
    if kind.__module__.startswith("mmengine.")
)


def test_every_kind_of_schedule_is_known():
    assert {"MultiStepLR", "PolyLR", "LinearLR", "CosineAnnealingLR", "OneCycleLR"} <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_every_schedule_loads(tmp_path, kind):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)
    stem = kind.removesuffix("ParamScheduler").removesuffix("LR").removesuffix("Momentum")
    arguments = dict(type=kind, optimizer=optimizer, **SCHEDULES.get(stem, {}))
    if kind.endswith("ParamScheduler"):
        arguments["param_name"] = "lr"
    schedule = PARAM_SCHEDULERS.build(arguments)
    for _ in range(2):
        optimizer.step()
        schedule.step(*([{"loss": 1.0}] if stem == "ReduceOnPlateau" else []))
    save(tmp_path / "w.pth", {"state_dict": {}, "param_schedulers": [schedule.state_dict()]})
    assert load_file(tmp_path / "w.pth")["param_schedulers"] == [schedule.state_dict()]


def cut(path: Path, part: float) -> None:
    save(path, {"a": torch.ones(1000)}, zipped=path.suffix == ".zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])


def flip_a_bit(path: Path) -> None:
    save(path, {"a": torch.ones(1000)})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def compress(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", pickle.dumps({"a": "a" * 10**6}, protocol=2))
        archive.writestr("w/version", "3\n")


def overlap(path: Path) -> None:
    """Two entries of the directory at the end stand for the same record."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", bytes(1000))
        archive.writestr("w/version", "3\n")
        archive.filelist.append(archive.filelist[0])


def cut_safetensors(path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(300))


# name: how the file is made, and what is said about it in one line.
MALFORMED = {
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "page": (
        lambda p: p.write_bytes(b"\n<!DOCTYPE html><html>Sign in</html>"),
        "is a web page, not a checkpoint: download the file itself",
    ),
    "Git LFS": (
        lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "is a Git LFS pointer",
    ),
    "text": (lambda p: p.write_text("hello"), "is not a PyTorch or safetensors checkpoint"),
    "folder": (lambda p: p.mkdir(), "is not a file"),
    "cut zip": (lambda p: cut(p, 0.8), "is cut off: the end of the file is missing"),
    "cut safetensors": (cut_safetensors, "is not a complete checkpoint: "),
    "flipped bit": (flip_a_bit, "is damaged: the checksum of .*data/0 is wrong"),
    "tar": (lambda p: tar_of_old(p, p.with_name("ran")), "is not a PyTorch or safetensors"),
    "other zip": (
        lambda p: zipfile.ZipFile(p, "w").writestr("a", "b"),
        "is a zip file, but not a checkpoint",
    ),
    "number": (lambda p: save(p, 3), "holds no state dict"),
    "no weights": (lambda p: save(p, {"epoch": 3}), "'epoch' is a int"),
    "empty state dict": (lambda p: save(p, {"model": {}}), "holds no state dict"),
    "array": (lambda p: save(p, {"model": {"a": np.ones(2)}}), "'a' is a ndarray"),
    "short storage": (
        lambda p: zip_of_pickle(p, storage(1000), s0=bytes(4)),
        "is damaged: its storage '0' has not 4000 bytes",
    ),
    "compressed": (compress, "is compressed"),
    "overlapping": (overlap, "is damaged: its records overlap"),
    "same names": (
        lambda p: zip_of_pickle(p, b"N", sa=b"a" * 9, sA=b"b"),
        "is damaged: two of its records have the same name",
    ),
    "hand-made instruction": (
        lambda p: zip_of_pickle(p, b"\xff"),
        "is not a complete checkpoint: byte 255 is no pickle instruction",
    ),
    "two classifiers": (
        lambda p: save(p, {"head.weight": torch.ones(1), "head.fc.weight": torch.ones(1)}),
        "has head.fc.weight under two names",
    ),
    "metadata": (
        lambda p: zip_of_pickle(
            p, name("collections", "OrderedDict") + b")R}" + text("_metadata") + number(1) + b"sb"
        ),
        "sets attributes of an OrderedDict",
    ),
    "integers": (
        lambda p: save(p, {n: v.int() for n, v in old.backbone_weights("tiny").items()}),
        "weights that are not floating-point numbers",
    ),
    "lines in a name": (
        lambda p: save(p, old.backbone_weights("tiny") | {"a\nb" + "c" * 10**4: torch.ones(1)}),
        r"unexpected: a\\nbc+\.\.\.",
    ),
    "doubled": (
        lambda p: save(p, {"a": torch.ones(1), "module.a": torch.ones(1)}),
        "both with and without 'module.'",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_named_in_one_line(monkeypatch, tmp_path, name):
    make, said = MALFORMED[name]
    path = tmp_path / ("w.zip" if "cut zip" in name else "w.pth")
    make(path)
    with pytest.raises(SystemExit, match=rf"^error: [^\n]*{path.name}[^\n]*{said}[^\n]*$"):
        tool_main(monkeypatch, CONVERT, path, tmp_path / "new.pth")
    with pytest.raises(CheckpointError, match=said):
        pretrained(path, arch="tiny")
    assert {p.name for p in tmp_path.iterdir()} == {path.name}


def test_files_that_are_not_there_are_named(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth does not exist"):
        load_file(tmp_path / "nowhere.pth")
    with pytest.raises(SystemExit, match=r"^error: checkpoint .*nowhere\.pth does not exist$"):
        tool_main(monkeypatch, CONVERT, tmp_path / "nowhere.pth", tmp_path / "new.pth")


def test_a_destination_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    source = tmp_path / "w.pth"
    save(source, old.classifier_weights("tiny", 2))
    content = source.read_bytes()
    for destination, said in {
        tmp_path / "missing/new.pth": f"there is no folder {tmp_path / 'missing'}$",
        tmp_path / ("n" * 300): "File name too long",
        tmp_path: "it is not a file$",
        source: "is the source: give the result another name$",
    }.items():
        with pytest.raises(SystemExit, match=f"^error: {destination}.*{said}"):
            tool_main(monkeypatch, CONVERT, source, destination)
    assert list(tmp_path.iterdir()) == [source] and source.read_bytes() == content


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_full_disk_leaves_what_was_there(tmp_path, suffix):
    save(tmp_path / "w.pth", old.classifier_weights("tiny", 2))
    (tmp_path / f"new.{suffix}").write_bytes(b"older")
    # Files of this process may grow to 1 MB only.
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20,) * 2)"
    code = f"{limit}; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    result = subprocess.run(
        [sys.executable, "-c", code, CONVERT, tmp_path / "w.pth", tmp_path / f"new.{suffix}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 1
    error = result.stderr.strip().splitlines()[-1]
    assert error == f"error: {tmp_path}/new.{suffix} cannot be written: File too large"
    assert (tmp_path / f"new.{suffix}").read_bytes() == b"older"
    assert len(list(tmp_path.iterdir())) == 2


def test_training_state_loads(tmp_path):
    from mmengine.logging import MessageHub

    hub = MessageHub.get_instance("test_training_state_loads")
    hub.update_scalar("train/loss", 0.5)
    hub.update_info("iter", 7)
    hub.update_info("best_score", np.float64(0.25))
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved = {
        "message_hub": hub.state_dict(),
        "optimizer": optimizer.state_dict(),
        "state_dict": model.half().state_dict(),
    }
    torch.save(saved, tmp_path / "epoch_1.pth")
    loaded = load_file(tmp_path / "epoch_1.pth")
    assert loaded["message_hub"]["log_scalars"]["train/loss"].current() == 0.5
    assert loaded["message_hub"]["runtime_info"]["best_score"] == 0.25
    assert torch.equal(loaded["state_dict"]["weight"], model.weight)
    assert loaded["state_dict"]._metadata == model.state_dict()._metadata
    moment = saved["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], moment)


@pytest.mark.parametrize(
    "array",
    [np.arange(6.0).reshape(2, 3).T, np.array(["a", "bc"]), np.array([], np.int32), np.bool_(True)],
    ids=["floats", "text", "empty", "scalar"],
)
def test_arrays_load(tmp_path, array):
    torch.save({"a": array}, tmp_path / "w.pth")
    loaded = load_file(tmp_path / "w.pth")["a"]
    assert loaded.dtype == array.dtype and loaded.shape == array.shape
    assert np.array_equal(loaded, array)


def test_the_last_complete_checkpoint_is_resumed(tmp_path):
    assert find_checkpoint_to_resume(tmp_path) is None
    assert find_checkpoint_to_resume(tmp_path / "missing") is None
    for epoch in (2, 9, 10):
        torch.save({"a": torch.ones(1000)}, tmp_path / f"epoch_{epoch}.pth")
    torch.save({}, tmp_path / "best_coco_epoch_11.pth")
    assert find_checkpoint_to_resume(tmp_path).name == "epoch_10.pth"
    cut = (tmp_path / "epoch_10.pth").read_bytes()[:-100]
    (tmp_path / "epoch_10.pth").write_bytes(cut)
    assert not zipfile.is_zipfile(tmp_path / "epoch_10.pth")
    assert find_checkpoint_to_resume(tmp_path).name == "epoch_9.pth"


def test_names_and_urls_become_files(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    fetched = []

    def download(url: str, path: str) -> None:
        fetched.append(url)
        Path(path).write_bytes(b"")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        found = find_file("https://example.org/models/crossformer-s.pth?download=1")
        assert found == tmp_path / "hub/checkpoints/crossformer-s.pth"
    assert fetched == ["https://example.org/models/crossformer-s.pth?download=1"]
    assert find_file("torchvision://resnet50").name.startswith("resnet50-")
    assert find_file("open-mmlab://resnet50_v1c").name.startswith("resnet50_v1c-")
    assert find_file("~/w.pth") == Path.home() / "w.pth"
    for name in ("s3://bucket/w.pth", "pavi://w", "torchvision://no_such_model"):
        with pytest.raises(CheckpointError, match=name):
            find_file(name)


def test_a_home_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "w.pth", old.classifier_weights("tiny", 2))
    tool_main(monkeypatch, CONVERT, "~/w.pth", "~/new.pth")
    assert load_file("~/new.pth")["meta"]["kind"] == "classifier"
    check_file("~/new.pth", "--pretrained")


@pytest.mark.parametrize("url", ["http://host:port/w.pth", "http://no host/w.pth"])
def test_an_address_that_is_none_is_named(monkeypatch, tmp_path, url):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match=f"checkpoint {url} cannot be downloaded"):
        find_file(url)


def test_a_failed_download_is_named_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    source = tmp_path / "w.pth"
    source.write_bytes(b"x")
    assert find_file(source.as_uri()) == source
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    with pytest.raises(
        CheckpointError, match=r"https://127\.0\.0\.1:1/w\.pth cannot be downloaded"
    ):
        find_file("https://127.0.0.1:1/w.pth")
    assert not list((tmp_path / "checkpoints").iterdir())
