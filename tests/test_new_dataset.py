"""Own data: the validation split, configs that train, the contact sheet and the command."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, SMALL_ARCH, metrics_of, tool_main
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from test_configs import shrink
from test_own_data import ALL

from crossformer_mm.datasets.own.configs import make_palette, write_configs
from crossformer_mm.datasets.own.heads import HEADS
from crossformer_mm.datasets.own.records import DataSetError, OwnDataset, Sample, Shape
from crossformer_mm.datasets.own.splits import with_validation
from crossformer_mm.engine.config import load_config
from crossformer_mm.models.build import build_on_meta
from crossformer_mm.visualization.contact_sheet import draw_contact_sheet

TASKS = ("detection", "segmentation", "classification")
CLASSES = ["cell", "red nucleus", "größer"]
MODELS = {task: [name for name in HEADS if HEADS[name].task == task] for task in TASKS}
each_task = pytest.mark.parametrize("task", MODELS)


def make_sample(root: Path, task: str, index: int, masks: bool = True) -> Sample:
    label = index % 3
    pixels, labels = np.full((48, 64, 3), 60, np.uint8), np.zeros((48, 64), np.uint8)
    pixels[10:30, 10:40, label] = 250
    labels[10:30, 10:40], labels[0] = label, 255
    image, label_map = (
        root / f"images/{label} b/{index}.jpg",
        root / f"masks/{label} b/{index}_m.png",
    )
    for path, content in ((image, pixels), (label_map, labels)):
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), content)
    if task == "classification":
        return Sample(image, (64, 48), category=CLASSES[label])
    if task == "segmentation":
        return Sample(image, (64, 48), label_map=label_map)
    outline = [[10.0, 10.0, 40.0, 10.0, 40.0, 30.0, 10.0, 30.0]] if masks else []
    shape = Shape(CLASSES[label], (10.0, 10.0, 30.0, 20.0), f"{index}.txt:1", outline)
    return Sample(image, (64, 48), [shape])


def make_dataset(root: Path, task: str, count: int = 9, masks: bool = True) -> OwnDataset:
    samples = [make_sample(root, task, index, masks) for index in range(count)]
    return OwnDataset(root, "YOLO", task, CLASSES, {"train": samples}, {"train": root})


def make_split(root: Path, task: str, **options: object) -> OwnDataset:
    return with_validation(make_dataset(root, task, **options))[0]


@each_task
def test_validation_images_are_of_every_class_and_the_same_each_time(task, tmp_path):
    dataset = make_dataset(tmp_path, task, 30)
    split, line = with_validation(dataset, fraction=0.2, seed=1)
    parts = [{sample.image for sample in split.splits[name]} for name in ("train", "val")]
    assert "6 of 30" in line and len(parts[1]) == 6 and len(parts[0] | parts[1]) == 30
    for part in parts:
        shown = {int(image.stem) % 3 for image in part}  # every label map has the first class
        assert shown | ({0} if task == "segmentation" else set()) == {0, 1, 2}
    assert with_validation(dataset, seed=1)[0].splits == split.splits
    assert with_validation(dataset, seed=2)[0].splits != split.splits
    assert "val" not in dataset.splits and with_validation(split)[0] is split
    (chosen,) = make_split(tmp_path, task, count=4).splits["val"]
    assert chosen.image.stem in "03"  # there is one image of each other class
    with pytest.raises(DataSetError, match="has 1 training images"):
        make_split(tmp_path, task, count=1)


@pytest.mark.families
@pytest.mark.parametrize(
    ("task", "masks"), [*((task, True) for task in MODELS), ("detection", False)]
)
def test_written_configs_have_the_classes_everywhere_and_read_the_data(task, masks, tmp_path):
    dataset = make_split(tmp_path / "data", task, masks=masks)
    written = write_configs(dataset, MODELS[task], tmp_path / "own/cells")
    for path in written[: len(MODELS[task])]:
        cfg = load_config(str(path))
        assert set(re.findall(r"'num_classes': (\d+)", str(cfg.to_dict()))) == {"3"}, path
        heads = [part for part in build_on_meta(cfg).modules() if hasattr(part, "num_classes")]
        assert {part.num_classes for part in heads} - {1, None} == {3}, path  # 1: RPN
        init_default_scope(cfg.default_scope)
        for name in ("train", "val", "test"):
            loaded = DATASETS.build(shrink(cfg.to_dict())[f"{name}_dataloader"]["dataset"])
            assert len(loaded) == len(dataset.splits["train" if name == "train" else "val"])
            assert tuple(loaded.metainfo["classes"]) == tuple(CLASSES)
            for sample in map(loaded.__getitem__, range(len(loaded))):
                packed = sample["data_samples"]
                label = int(Path(packed.img_path).stem) % 3
                if task == "segmentation":  # cropping may leave one class only
                    assert set(packed.gt_sem_seg.data.unique().tolist()) <= {0, label, 255}
                else:
                    labels = packed.gt_instances.labels if task == "detection" else packed.gt_label
                    assert labels.tolist() == [label]
        assert cfg.work_dir == f"work_dirs/cells/{path.stem}" and cfg.randomness.seed == 0
        assert cfg.default_hooks.visualization["enable" if task == "classification" else "draw"]


@pytest.mark.fault("own data sets")
def test_nothing_is_overwritten(tmp_path):
    dataset, out = make_split(tmp_path / "data", "detection"), tmp_path / "own"
    first = write_configs(dataset, [], out)
    assert [path.name for path in first] == ["mask-rcnn_crossformer-s.py", "train.json", "val.json"]
    with pytest.raises(FileExistsError, match="mask-rcnn_crossformer-s.py exists"):
        write_configs(dataset, ["retinanet", "mask-rcnn"], out)
    with pytest.raises(DataSetError, match="is for detection; take retinanet or mask-rcnn"):
        write_configs(dataset, ["retinanet", "fpn"], out)
    assert len(write_configs(dataset, ["retinanet"], out)) == 1  # on the same annotations
    other = with_validation(make_dataset(tmp_path / "data", "detection"), seed=5)[0]
    with pytest.raises(FileExistsError, match=r"(train|val).json exists"):
        write_configs(other, ["cascade"], out)


def test_one_class_keeps_its_comma_and_few_have_no_top_5(tmp_path):
    samples = [make_sample(tmp_path, "classification", index) for index in (0, 3, 6)]
    splits = dict(train=samples[:2], val=samples[2:])
    dataset = OwnDataset(tmp_path, "YOLO", "classification", ["cell"], splits, {})
    (config, *_) = write_configs(dataset, [], tmp_path / "own")
    assert "classes = ('cell',)" in config.read_text()
    assert load_config(str(config)).val_evaluator.topk == (1,)


@each_task
def test_palettes_are_of_different_colours_and_the_contact_sheet_is_drawn(task, tmp_path):
    assert len(set(make_palette(80))) == 80
    dataset = make_split(tmp_path, task)
    draw_contact_sheet(dataset, tmp_path / "sheet.png", count=5)
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (2 * 486, 4 * 486, 3)
    dataset.splits["train"][0].image.write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be read"):
        draw_contact_sheet(dataset, tmp_path / "none.png")


@pytest.mark.fault("own data sets")
def test_label_maps_of_several_endings_are_an_error_that_names_them(tmp_path):
    dataset = make_split(tmp_path, "segmentation")
    dataset.splits["train"][0].image = tmp_path / "images/0 b/0.png"
    with pytest.raises(DataSetError, match=r"end in .jpg with _m.png, .png with _m.png"):
        write_configs(dataset, [], tmp_path / "own")
    assert not (tmp_path / "own").exists()


TOOL = ROOT / "tools/new_dataset.py"


@pytest.mark.fault("own data sets")
def test_errors_are_counted_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ALL["coco"](tmp_path / "cells")
    file = tmp_path / "cells/annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [4, 8, 0, 16]
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"has errors \(1\).*--copy-fixed DIR$"):
        tool_main(TOOL, "cells")
    printed = capsys.readouterr().out
    assert re.search(r"errors: 1\nerror: boxes are empty \(1 x: .*instances_train.json", printed)
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]
    tool_main(TOOL, "cells", "--copy-fixed", "fixed")
    printed = capsys.readouterr().out
    assert "changes: 1\n" in printed and printed.endswith("python tools/new_dataset.py fixed\n")


@pytest.mark.families
@pytest.mark.parametrize("form", ALL)
def test_the_command_writes_what_trains(form, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ALL[form](tmp_path / "cells")
    tool_main(TOOL, "cells", "--seed", 3)
    printed = capsys.readouterr().out
    config = re.search(r"train.py (\S+)", printed)[1]
    assert Path("configs/own/cells/contact_sheet.png").stat().st_size > 0

    cfg = load_config(config)
    cfg.model.backbone.arch = SMALL_ARCH
    if cfg.default_scope == "mmpretrain":
        cfg.model.head.in_channels = 128
    else:
        cfg.model.neck.in_channels = [16, 32, 64, 128][config.count("retinanet") :]
    cfg.train_cfg.update(val_interval=2)
    cfg.train_cfg["max_iters" if cfg.default_scope == "mmseg" else "max_epochs"] = 2
    small = Config(shrink(cfg.to_dict()))
    for loader in (small.train_dataloader, small.val_dataloader, small.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.metainfo = cfg.metainfo  # with its tuples
    small.dump("small.py")
    tool_main(ROOT / "tools/train.py", "small.py", "--work-dir", "work")
    assert list(Path("work").rglob("vis_image/*.png"))
    (best,) = Path("work").glob("best_*.pth")
    tool_main(ROOT / "tools/test.py", "small.py", best, "--work-dir", "work")
    assert metrics_of(Path("work"))
