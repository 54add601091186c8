"""Files with random damage: refused in one line or read rightly, in bounded time and memory.

A family is a strategy, which draws the content of a file, and an oracle, which looks at what became
of it. ``pytest -m fault tests/test_fuzz.py --fuzz-cases 100000`` draws more, and ends with a table.
"""

import copy
import io
import json
import re
import resource
import struct
import time
import warnings
import zipfile
from argparse import ArgumentParser
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image
from pycocotools.coco import COCO as COCOReader
from pycocotools.mask import decode, encode, frPyObjects, merge
from safetensors.torch import save as save_safetensors

from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.datasets.checked_pipeline import CheckedCompose
from crossformer_mm.datasets.coco_annotations import read_complete
from crossformer_mm.engine.cfg_options import add_cfg_options, merge_options
from crossformer_mm.utils.errors import CheckpointError, DataError

MEMORY = 2**30  # bytes that a process may take more than before
SECONDS = 5  # of the processor, for a case


class Family(NamedTuple):
    """Damaged content, and what is expected of the file that holds it.

    ``read`` returns whether the file was read; it lets the errors through that refuse it, which are
    of the kinds ``refusals``, and fails if what it read is wrong.
    """

    damaged: st.SearchStrategy
    read: Callable[[Path, object], None]
    refusals: tuple[type[Exception], ...]


# --- Checkpoints --------------------------------------------------------------------------------


def some_weights() -> OrderedDict:
    numbers = torch.arange(24.0)
    return OrderedDict(
        {"a.weight": numbers.view(4, 6), "a.bias": numbers[3:7], "b": torch.ones(5).half()},
        steps=torch.tensor(7),
    )


def pth() -> bytes:
    file = io.BytesIO()
    meta = dict(epoch=3, classes=["cat", "dog"], scores=np.arange(3.0), seed=None)
    state = {0: dict(step=torch.tensor(4.0), exp_avg=torch.ones(4, 6))}
    torch.save(dict(state_dict=some_weights(), meta=meta, optimizer=dict(state=state)), file)
    return file.getvalue()


def safetensors() -> bytes:
    apart = {name: value.clone() for name, value in some_weights().items()}
    return save_safetensors(apart, {"format": "pt", "meta": '{"epoch": 3}'})


PTH, SAFETENSORS = pth(), safetensors()
HEADER = 8 + struct.unpack("<Q", SAFETENSORS[:8])[0]
with zipfile.ZipFile(io.BytesIO(PTH)) as archive:
    RECORDS = [(name, archive.read(name)) for name in archive.namelist()]
INTERESTING = (0, 1, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**62, 2**63, 2**64 - 1)


@st.composite
def damaged_bytes(draw: Callable, whole: bytes) -> bytes:
    """Bytes flipped, put in or cut off, fields of 1 to 8 bytes set or swapped."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        if not data:
            break
        place = st.integers(0, len(data) - 1)
        at, width = draw(place), draw(st.sampled_from((1, 2, 4, 8)))
        match draw(st.sampled_from(("flip", "set", "swap", "cut", "insert", "remove"))):
            case "flip":
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                number = draw(st.sampled_from(INTERESTING)) % (1 << 8 * width)
                data[at : at + width] = number.to_bytes(width, "little")
            case "swap":
                other = draw(place)
                one, two = data[at : at + width], data[other : other + width]
                data[at : at + len(two)], data[other : other + len(one)] = two, one
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "remove":
                del data[at : at + width]
    return bytes(data)


@st.composite
def damaged_records(draw: Callable) -> bytes:
    """Records doubled, dropped, renamed, swapped, with other sizes or damaged, checksums right."""
    records = list(RECORDS)
    for _ in range(draw(st.integers(1, 2))):
        places = (0, 0, 0, *range(len(records)))  # the first is the pickle
        at, other = (draw(st.sampled_from(places)) for _ in range(2))
        name, data = records[at]
        match draw(st.sampled_from(("damage", "damage", "double", "drop", "rename", "swap"))):
            case "damage":
                records[at] = name, draw(damaged_bytes(data or b"x"))
            case "double":
                records.insert(other, (name, draw(st.sampled_from((data, b"", data[::-1])))))
            case "drop" if len(records) > 1:
                del records[at]
            case "rename":
                records[at] = draw(st.sampled_from((records[other][0], "../x", "/x", ""))), data
            case "swap":
                records[at], records[other] = (name, records[other][1]), (records[other][0], data)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in records:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of two with one name
                archive.writestr(zipfile.ZipInfo(name), data)
        archive.comment = draw(st.sampled_from((*[b""] * 9, b"x", PTH[-22:])))
    return file.getvalue()


@st.composite
def damaged_headers(draw: Callable) -> bytes:
    """Safetensors whose header has other sizes, places, types or names."""
    header = json.loads(SAFETENSORS[8:HEADER])
    number = st.sampled_from((-1, 0, 1, 2, 8, 24, 2**31, 2**63, 2**64, 1.5, None, "1"))
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(header)))
        entry = header[name]
        key = draw(st.sampled_from(sorted(entry)))
        match draw(st.sampled_from(("number", "type", "swap", "drop", "rename"))):
            case "number" if isinstance(entry[key], list) and entry[key]:
                entry[key][draw(st.integers(0, len(entry[key]) - 1))] = draw(number)
            case "type":
                entry[key] = draw(st.sampled_from(("F64", "F16", "I64", "BOOL", "x", 3, [], {})))
            case "swap":
                other = draw(st.sampled_from(sorted(header)))
                header[name], header[other] = header[other], header[name]
            case "drop" if len(entry) > 1:
                del entry[key]
            case "rename":
                header[draw(st.sampled_from((*header, "c", "x\ny", "__metadata__")))] = entry
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + SAFETENSORS[HEADER:]


def read_whole(path: Path, content: bytes) -> None:
    """Checksums tell all damage to what a file holds, so what is read is what was written."""
    found = load_file(path)
    assert found.keys() == {"state_dict", "meta", "optimizer"}
    assert_same(found["state_dict"], some_weights())
    assert found["meta"].pop("scores").tolist() == [0, 1, 2]
    assert found["meta"] == dict(epoch=3, classes=["cat", "dog"], seed=None)
    assert_same(
        found["optimizer"]["state"][0], dict(step=torch.tensor(4.0), exp_avg=torch.ones(4, 6))
    )


def read_untouched(path: Path, content: bytes) -> None:
    """Weights whose bytes, names and place are as they were have not changed."""
    found = load_file(path)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        now = {name: archive.read(name) for name in archive.namelist()}
    if now.get("archive/data.pkl") == dict(RECORDS)["archive/data.pkl"]:
        same = [now.get(name) == data for name, data in RECORDS if "/data/" in name]
        # The first two share the first record; then each has its own.
        expected = list(zip(some_weights().items(), [same[0], *same[:3]], strict=True))
        assert_same(found["state_dict"], dict(item for item, is_same in expected if is_same))
    total = sum(value.nbytes for value in tensors_in(found))
    assert total <= 16 * len(content) + 2**20


def read_safetensors(path: Path, content: bytes) -> None:
    """Without checksums, numbers change with their bytes, and nothing else does."""
    found = load_file(path)["state_dict"]
    assert sum(value.nbytes for value in found.values()) <= len(content)
    if content[:HEADER] == SAFETENSORS[:HEADER]:
        header = json.loads(content[8:HEADER])
        assert found.keys() == header.keys() - {"__metadata__"}
        for name, value in found.items():
            start, end = (HEADER + place for place in header[name]["data_offsets"])
            assert (
                value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
                == content[start:end]
            )


def tensors_in(value: object) -> list[torch.Tensor]:
    """The tensors in what a file holds, which is made of plain values only."""
    if isinstance(value, torch.Tensor):
        return [value.contiguous()]
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    if isinstance(value, dict | list | tuple | set):
        return [tensor for part in parts for tensor in tensors_in(part)]
    plain = str | int | float | bool | bytes | None | np.ndarray | np.generic | torch.dtype
    assert isinstance(value, plain | np.dtype), value
    return []


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() >= expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


REFUSED = (CheckpointError,)
FAMILIES = {
    "pth, bytes": Family(damaged_bytes(PTH), read_whole, REFUSED),
    "pth, records": Family(damaged_records(), read_untouched, REFUSED),
    "safetensors, bytes": Family(damaged_bytes(SAFETENSORS), read_safetensors, REFUSED),
    "safetensors, header": Family(damaged_headers(), read_safetensors, REFUSED),
}

# --- Data and options ---------------------------------------------------------------------------

COCO = dict(
    images=[dict(id=n, file_name=f"{n}.jpg", height=40 + n, width=60) for n in (1, 2, 3)],
    categories=[dict(id=n, name=name) for n, name in ((3, "cat"), (9, "dog"))],
    annotations=[
        dict(
            id=1,
            image_id=1,
            category_id=3,
            bbox=[1, 2, 20, 30],
            segmentation=[[1, 2, 21, 2, 9, 32]],
        ),
        dict(id=2, image_id=2, category_id=9, bbox=[5, 5, 9, 9], iscrowd=1),
        dict(id=3, image_id=3, category_id=9, bbox=[0, 0, 60, 43], area=2580),
    ],
)
COCO["annotations"][1]["segmentation"] = dict(size=[42, 60], counts=[100, 300, 2120])
WHOLE = encode(np.ones((43, 60), np.uint8, order="F"))["counts"].decode()
COCO["annotations"][2]["segmentation"] = dict(size=[43, 60], counts=WHOLE)
ODD = (-1, 0, 1, 2.5, 1e9, 1e30, 2**63, -(2**70), "", "7", "o" * 99, [], {}, [[]], None, True)
ODD += (float("nan"), float("inf"), [1, 2], [[0, 0, 9, 9, 1e9, 9]], dict(size=[9, 9], counts="9"))


@st.composite
def damaged_coco(draw: Callable) -> bytes:
    """A COCO JSON file with odd values, entries doubled, and keys that are missing."""
    content = json.loads(json.dumps(COCO))
    for _ in range(draw(st.integers(1, 3))):
        value = content[draw(st.sampled_from(sorted(content)))]
        while value and draw(st.integers(0, 3)):
            keys = list(value) if isinstance(value, dict) else range(len(value))
            parent, key = value, draw(st.sampled_from(list(keys)))
            value = value[key]
            if not isinstance(value, (dict, list)):
                break
        else:
            continue
        match draw(st.sampled_from(("set", "set", "drop", "double"))):
            case "set":
                parent[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
            case "drop":
                del parent[key]
            case "double" if isinstance(parent, list):
                parent.append(parent[key])
    return json.dumps(content).encode()


def read_coco(path: Path, content: bytes) -> None:
    """Of what is accepted, pycocotools makes every mask, of its image's size."""
    content = read_complete(COCOReader, str(path), str(path), with_masks=True).dataset
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        size, mask = sizes.get(annotation["image_id"]), annotation["segmentation"]
        if size is not None and size[0] * size[1] < 10**7 and mask:
            runs = mask if isinstance(mask, dict) else merge(frPyObjects(mask, *size))
            runs = runs if isinstance(runs["counts"], str | bytes) else frPyObjects(runs, *size)
            assert decode(runs).shape == size


LABELS = np.arange(30, dtype=np.uint8).reshape(5, 6) % 7
with io.BytesIO() as file:
    Image.fromarray(LABELS).save(file, "PNG")
    PNG = file.getvalue()


def read_label_map(path: Path, content: bytes) -> None:
    """Checksums tell damage to the labels; only the size of an odd header could be another."""
    steps = SimpleNamespace(transforms=[LoadAnnotations()])
    dataset = SimpleNamespace(pipeline=steps, reduce_zero_label=False, metainfo={})
    data = dict(seg_map_path=str(path), reduce_zero_label=False, seg_fields=[])
    data["ori_shape"] = LABELS.shape  # as its image is read before
    assert np.array_equal(CheckedCompose(dataset)(data)["gt_seg_map"], LABELS)


KEYS = ("model.backbone.arch", "train_cfg.max_epochs", "train_dataloader.dataset.pipeline.0.type")
keys = st.one_of(st.sampled_from(KEYS), st.text(max_size=20))
values = st.one_of(st.text(max_size=30), st.text("[](),'\"1a .", max_size=30))


def read_option(path: Path, option: str) -> None:
    parser = ArgumentParser()
    add_cfg_options(parser)
    cfg = Config(dict(model=dict(backbone=dict(arch="tiny")), train_cfg=dict(max_epochs=1)))
    merge_options(cfg, parser.parse_args([f"--cfg-options={option}"]).cfg_options)


FAMILIES["COCO JSON"] = Family(damaged_coco(), read_coco, (DataError,))
FAMILIES["label maps"] = Family(damaged_bytes(PNG), read_label_map, (DataError,))
option = st.tuples(keys, st.sampled_from("==, "), values).map("".join)
FAMILIES["config overrides"] = Family(option, read_option, (SystemExit,))

# --- All families -------------------------------------------------------------------------------


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let the process take so much more memory, and no more: a case that needs more fails."""
    usual = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, usual[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, usual)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=name, marks=pytest.mark.fault("random damage, fuzzed"))
        for name, family in FAMILIES.items()
    ],
)
def test_damage_is_refused_in_one_line_or_does_no_harm(
    family, tmp_path, pytestconfig, little_memory, record_property
):
    path, count = tmp_path / "damaged", Counter()

    @settings(
        max_examples=pytestconfig.getoption("--fuzz-cases"),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(family.damaged)
    def check(content: bytes | str) -> None:
        path.write_bytes(content if isinstance(content, bytes) else b"")
        start = time.process_time()
        try:
            family.read(path, content)
            count["read"] += 1
        except family.refusals as error:
            count["refused"] += 1
            said = str(error)
            assert said.isprintable() and len(said) < 1000
            assert str(path) in said or said.startswith("error: --cfg-options ")
            assert "memory" not in said.lower(), said
        assert time.process_time() - start < SECONDS

    try:
        check()
    finally:
        record_property("tried", count.total())
    assert count["refused"]
