"""Configs for a data set of one's own: leaves on the shipped ones, with its annotation files."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from pprint import pformat

from PIL import ImageColor

from crossformer_mm.datasets.own import annotation_files
from crossformer_mm.datasets.own.heads import default_model, find_head
from crossformer_mm.datasets.own.records import OwnDataset
from crossformer_mm.datasets.own.schedules import write_schedule
from crossformer_mm.utils.index import find_index_root
from crossformer_mm.utils.io import atomic_write

CONFIG = """\
# Written by tools/new_dataset.py, yours to change. The data are {form}.
_base_ = {base!r}

classes = {classes}
palette = {palette}
num_classes = len(classes)
data_root = {root!r}
annotation_root = "{{{{ fileDirname }}}}/"  # where this file is
work_dir = {work_dir!r}
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline

{files}{data}{model}
metainfo = dict(classes=classes, palette=palette)
data.update(_delete_=True, data_root=data_root, metainfo=metainfo)
train_data = dict(**data, **train_files, pipeline=train_pipeline)
train_dataloader = dict(batch_size={batch}, dataset=train_data)
val_dataloader = dict(dataset=dict(**data, **val_files, pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(**data, **test_files, pipeline=test_pipeline))

{schedule}"""
DATA = dict(
    detection="""\
train_files.update(filter_cfg=dict(filter_empty_gt=True, min_size=0))
data = dict(type="CocoDataset", data_prefix=dict(img=""))
val_evaluator = dict(ann_file=val_files["ann_file"])
test_evaluator = dict(ann_file=test_files["ann_file"])
""",
    segmentation='data = dict(type="BaseSegDataset")\n',
    classification="""\
data = dict(type="CustomDataset")
val_evaluator = test_evaluator = dict(topk=(1, 5) if num_classes >= 5 else (1,))
""",
)


def write_configs(dataset: OwnDataset, models: Sequence[str], out: Path) -> list[Path]:
    """Write a config for each head, and the annotation files that they need, to one folder.

    The data set has training and validation images, and no errors. Without names of heads it gets
    the usual one. What was written is returned, configs first. A file that is there is a
    FileExistsError, except for an annotation file of the same content.
    """
    files, annotations = _annotations(dataset)
    models = models or [default_model(dataset)]
    paths = {model: out / f"{model}_crossformer-s.py" for model in models}
    configs = {path: _config(dataset, model, path, files) for model, path in paths.items()}
    texts = configs | {out / name: text for name, text in annotations.items()}
    for path in filter(Path.exists, texts):
        if path in configs or path.read_text(encoding="utf-8") != texts[path]:
            raise FileExistsError(f"{path} exists: remove it, or give another --name")
    missing = [path for path in texts if not path.exists()]
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for path in missing:
            stack.enter_context(atomic_write(path)).write_text(texts[path], encoding="utf-8")
    return missing


def make_palette(count: int) -> list[tuple[int, int, int]]:
    """Colours, red first, of which neighbours differ much."""
    return [
        ImageColor.getrgb(f"hsv({index * 222.5 % 360}, 100%, 90%)")[:3] for index in range(count)
    ]


def _annotations(dataset: OwnDataset) -> tuple[str, dict[str, str]]:
    """A config's lines about the annotation files, and the texts of those."""
    task, lines, texts = dataset.task, "", {}
    for split, samples in dataset.splits.items():
        known = [bool(sample.shapes or sample.label_map or sample.category) for sample in samples]
        if split == "test" and not (any(known) if task == "detection" else known and all(known)):
            continue  # test images of challenges often have no annotations
        file = f"{split}.json" if task == "detection" else f"{split}.txt"
        lines += f'{split}_files = dict(ann_file=annotation_root + "{file}")\n'
        if task == "detection":
            texts[file] = annotation_files.coco_json(samples, dataset.classes, dataset.root)
        elif task == "classification":
            texts[file] = annotation_files.label_lines(samples, dataset.classes, dataset.root)
        else:
            texts[file], folders = annotation_files.label_map_names(samples, dataset.root)
            lines += "".join(f"{split}_files[{key!r}] = {folders[key]!r}\n" for key in folders)
    return lines if "test_files" in lines else f"{lines}test_files = val_files\n", texts


def _config(dataset: OwnDataset, model: str, path: Path, files: str) -> str:
    head = find_head(dataset, model)
    base = (find_index_root() / "configs" / head.task / f"{head.base}.py").resolve()
    return CONFIG.format(
        form=dataset.form,
        base=annotation_files.relative(base, path.parent.resolve()),
        classes=pformat(tuple(dataset.classes), width=88, compact=True),
        palette=pformat(make_palette(len(dataset.classes)), width=88, compact=True),
        root=f"{dataset.root}/",
        work_dir=f"work_dirs/{path.parent.resolve().name}/{path.stem}",
        files=files,
        data=DATA[head.task],
        model=head.model,
        batch=head.batch,
        schedule=write_schedule(head.task, head.batch, dataset.splits),
    )
