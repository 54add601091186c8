"""What all toy data sets have in common: how they are written, and the command that does it."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from crossformer_mm.datasets.toy import ade, coco, imagenet

SCRIPT = Path(__file__).parents[1] / "tools" / "make_toy_dataset.py"
SIZE = (128, 96)


class Dataset(NamedTuple):
    module: ModuleType
    write: Callable
    names: tuple[str, ...]  # in the output folder
    foreign: tuple[str, str]  # a file of the real data set, and what is in it


DATASETS = {
    "coco": Dataset(
        coco,
        coco.write_coco,
        ("annotations", "train2017", "val2017"),
        ("annotations/instances_val2017.json", '{"info": {"contributor": "COCO Consortium"}}'),
    ),
    "ade": Dataset(
        ade,
        ade.write_ade,
        ("annotations", "images", "objectInfo150.txt"),
        (
            "objectInfo150.txt",
            "Idx\tRatio\tTrain\tVal\tStuff\tName\n",
        ),
    ),
    "imagenet": Dataset(
        imagenet,
        imagenet.write_imagenet,
        ("meta", "train", "val"),
        ("meta/val.txt", "ILSVRC2012_val_00000001.JPEG 65\n"),
    ),
}
NAMES = [(dataset, name) for dataset, of in DATASETS.items() for name in of.names]
each_dataset = pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)


def _write(dataset, out, train, val, **options):
    return dataset.write(out, train, val, SIZE, report=lambda line: None, **options)


def _files(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def _images(root):
    images = {".jpg", ".JPEG", ".png"}
    return {path: content for path, content in _files(root).items() if path.suffix in images}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the script with arguments; (exit status, output, errors). No new process: it is fast."""

    def run_script(*args):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, args)])
        status = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as end:
            status = end.code
        output, errors = capsys.readouterr()
        if isinstance(status, str):  # what Python itself does with sys.exit(message)
            status, errors = 1, errors + status + "\n"
        return status, output, errors

    return run_script


# Writing


@each_dataset
def test_same_seed_same_bytes(dataset, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        _write(dataset, tmp_path / name, 3, 3, seed=seed)
    assert _files(tmp_path / "again") == _files(tmp_path / "one")
    one, other = _images(tmp_path / "one"), _images(tmp_path / "other")
    assert one.keys() == other.keys()
    assert all(one[path] != other[path] for path in one)


@each_dataset
def test_an_image_does_not_depend_on_how_many_there_are(dataset, tmp_path):
    _write(dataset, tmp_path / "many", 5, 4)
    _write(dataset, tmp_path / "few", 2, 1)
    many, few = _images(tmp_path / "many"), _images(tmp_path / "few")
    assert few and len(many) == 3 * len(few)
    assert few.items() <= many.items()


@each_dataset
def test_no_image_is_there_twice(dataset, tmp_path):
    _write(dataset, tmp_path, 9, 9)
    images = _images(tmp_path)
    assert len(images) >= 18 and len(set(images.values())) == len(images)


@each_dataset
def test_progress_is_reported_at_the_end_of_each_split(dataset, tmp_path):
    lines = []
    dataset.write(tmp_path, 2, 1, SIZE, report=lines.append)
    assert lines == ["train: 2 of 2 images", "val: 1 of 1 images"]


@pytest.mark.parametrize(("dataset", "present"), NAMES)
def test_present_data_is_not_overwritten_unless_asked(tmp_path, dataset, present):
    (tmp_path / present).mkdir()
    (tmp_path / present / "mine.txt").write_text("mine")
    (tmp_path / "other.txt").write_text("other")
    before = _files(tmp_path)
    with pytest.raises(FileExistsError, match=f"{present} already exists"):
        _write(DATASETS[dataset], tmp_path, 1, 1)
    assert _files(tmp_path) == before


@pytest.mark.parametrize(("dataset", "present"), NAMES)
def test_other_data_is_never_replaced(tmp_path, dataset, present):
    (tmp_path / present).mkdir()
    (tmp_path / present / "mine.txt").write_text("mine")
    before = _files(tmp_path)
    with pytest.raises(FileExistsError, match=f"{present} is not a toy data set"):
        _write(DATASETS[dataset], tmp_path, 1, 1, overwrite=True)
    assert _files(tmp_path) == before


@each_dataset
def test_the_real_data_set_is_never_replaced(tmp_path, dataset):
    path, content = dataset.foreign
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(content)
    with pytest.raises(FileExistsError, match="is not a toy data set"):
        _write(dataset, tmp_path, 1, 1, overwrite=True)
    assert _files(tmp_path) == {Path(path): content.encode()}


@each_dataset
def test_an_earlier_toy_data_set_is_replaced_as_a_whole(dataset, tmp_path):
    _write(dataset, tmp_path / "new", 1, 1)
    _write(dataset, tmp_path / "out", 2, 1, seed=1)
    (tmp_path / "out" / "other.txt").write_text("other")
    _write(dataset, tmp_path / "out", 1, 1, overwrite=True)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(dataset.names)
    expected = {**_files(tmp_path / "new"), Path("other.txt"): b"other"}
    assert _files(tmp_path / "out") == expected


@each_dataset
@pytest.mark.parametrize("is_new", [True, False])
def test_an_error_leaves_nothing_behind(dataset, tmp_path, monkeypatch, is_new):
    out = tmp_path / "out"
    if not is_new:
        _write(dataset, out, 1, 1)
    before = sorted(tmp_path.rglob("*"))

    def full_disk(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(dataset.module, "_write_split", full_disk)
    with pytest.raises(OSError, match="No space"):
        _write(dataset, out, 1, 1, overwrite=not is_new)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("dataset", "failing"), NAMES)
def test_a_failing_move_puts_the_old_data_back(dataset, failing, tmp_path, monkeypatch):
    _write(DATASETS[dataset], tmp_path, 1, 1)
    before = _files(tmp_path)
    rename = Path.rename

    def failing_rename(self, target):
        if self.name == failing and self.parent != tmp_path:
            raise OSError("Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing_rename)
    with pytest.raises(OSError, match="busy"):
        _write(DATASETS[dataset], tmp_path, 1, 1, seed=5, overwrite=True)
    assert _files(tmp_path) == before


@each_dataset
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 0}, "train is 0, but must be from 1 to"),
        ({"val": -3}, "val is -3, but must be from 1 to"),
        ({"size": (16, 96)}, r"size \(width\) is 16, but must be from 96 to"),
        ({"size": (320, 16)}, r"size \(height\) is 16, but must be from 96 to"),
        ({"seed": -1}, "seed is -1, but must be from 0 to"),
    ],
)
def test_bad_arguments_are_named(dataset, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        dataset.write(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


# Command line


@pytest.mark.parametrize("name", DATASETS)
def test_command_writes_and_sums_up_and_then_refuses(tmp_path, run, name):
    out, expected = tmp_path / "out", tmp_path / "expected"
    args = (name, out, "--train", 2, "--val", 1, "--size", *SIZE, "--seed", 3)
    status, output, errors = run(*args)
    assert (status, errors) == (0, "")
    assert "train: 2 images" in output and "val: 1 images" in output and str(out) in output
    _write(DATASETS[name], expected, 2, 1, seed=3)
    assert _files(out) == _files(expected)
    status, _, errors = run(*args)
    assert status == 1
    assert errors.count("\n") == 1 and f"{out}/" in errors and "already exists" in errors
    assert run(*args, "--overwrite")[0] == 0


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize(
    ("flags", "status"), [(("--size", 16, 16), 1), (("--train", 0), 1), (("--train", "many"), 2)]
)
def test_command_reports_a_bad_argument_in_one_line(tmp_path, run, name, flags, status):
    ended_with, _, errors = run(name, tmp_path / "out", *flags)
    assert ended_with == status
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert flags[0].strip("-") in errors and str(flags[1]) in errors
    assert not (tmp_path / "out").exists()


def test_command_names_the_data_sets_it_knows(run):
    status, _, errors = run("coco17")
    assert status == 2 and errors.count("\n") == 1
    assert all(name in errors for name in DATASETS)
