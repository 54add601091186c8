"""The heads that configs for a data set of one's own can be written for."""

from typing import NamedTuple

from crossformer_mm.datasets.own.records import DataSetError, OwnDataset

BOXES = "model = dict(bbox_head=dict(num_classes=num_classes))\n"
MASKS = """\
heads = dict(num_classes=num_classes)
model = dict(roi_head=dict(bbox_head=heads, mask_head=heads))
"""
THREE_STAGES = """\
bbox_heads = _base_.model.roi_head.bbox_head
for head in bbox_heads:
    head.num_classes = num_classes
model = dict(roi_head=dict(bbox_head=bbox_heads, mask_head=dict(num_classes=num_classes)))
"""
NO_MASKS = """\
# Not every object has an outline to learn masks from.
model["roi_head"].update(mask_roi_extractor=None, mask_head=None)
train_pipeline[1].with_mask = test_pipeline[2].with_mask = False
val_evaluator["metric"] = test_evaluator["metric"] = "bbox"
"""
PIXELS = """\
heads = dict(num_classes=num_classes)
model = dict(decode_head=heads)
"""
TWO_HEADS = PIXELS.replace("head=heads)", "head=heads, auxiliary_head=heads)")
NAMES = """\
data_preprocessor = dict(num_classes=num_classes)
model = dict(head=dict(num_classes=num_classes))
"""


class Head(NamedTuple):
    """A head that a config can be written for."""

    task: str
    base: str  # the shipped config, in the task's folder
    batch: int  # images at a time: as in the base on a GPU, fewer for the classifier
    model: str  # the config's entries with the number of classes


CASCADE = "cascade-mask-rcnn_crossformer-s-g14_fpn_4conv1fc-giou_ms-crop-3x_coco"
HEADS = {
    "retinanet": Head("detection", "retinanet_crossformer-s_fpn_1x_coco", 2, BOXES),
    "mask-rcnn": Head("detection", "mask-rcnn_crossformer-s_fpn_1x_coco", 2, MASKS),
    "cascade": Head("detection", CASCADE, 2, THREE_STAGES),
    "fpn": Head("segmentation", "fpn_crossformer-s_4xb4-80k_ade20k-512x512", 4, PIXELS),
    "upernet": Head("segmentation", "upernet_crossformer-s_8xb2-160k_ade20k-512x512", 2, TWO_HEADS),
    "classifier": Head("classification", "crossformer-small_8xb128_in1k", 32, NAMES),
}
MODELS = tuple(HEADS)


def default_model(dataset: OwnDataset) -> str:
    """The head that is written if none is asked for."""
    boxes = "mask-rcnn" if _has_all_outlines(dataset) else "retinanet"
    return dict(detection=boxes, segmentation="fpn", classification="classifier")[dataset.task]


def find_head(dataset: OwnDataset, model: str) -> Head:
    """The head of a name, without masks if the data have none; DataSetError for another task."""
    head = HEADS[model]
    if head.task != dataset.task:
        fitting = " or ".join(name for name in MODELS if HEADS[name].task == dataset.task)
        raise DataSetError(f"--model {model}: {dataset.root} is for {dataset.task}; take {fitting}")
    if "mask_head" in head.model and not _has_all_outlines(dataset):
        return head._replace(model=head.model + NO_MASKS)
    return head


def _has_all_outlines(dataset: OwnDataset) -> bool:
    samples = [sample for split in dataset.splits.values() for sample in split]
    shapes = [shape for sample in samples for shape in sample.shapes]
    return bool(shapes) and all(shape.polygons or shape.rle for shape in shapes)
