"""Random images with their annotations on one sheet, to see whether the labels lie right."""

import random
import warnings
from math import ceil
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from PIL import Image
from pycocotools import mask as coco_mask

from crossformer_mm.datasets.own.annotation_files import encode_mask
from crossformer_mm.datasets.own.configs import make_palette
from crossformer_mm.datasets.own.records import OwnDataset, Sample
from crossformer_mm.utils.io import atomic_write

CELL = 480  # pixels of a picture's longer side
STEP = CELL + 6


def draw_contact_sheet(dataset: OwnDataset, path: Path, count: int = 16, seed: int = 0) -> None:
    """Write a PNG of random training images; the libraries' own visualizers draw annotations."""
    train = dataset.splits["train"]
    chosen = random.Random(seed).sample(train, min(count, len(train)))
    draw = dict(detection=_draw_shapes, segmentation=_draw_labels, classification=_draw_name)
    meta = dict(classes=dataset.classes, palette=make_palette(len(dataset.classes)))
    columns = min(4, len(chosen))
    sheet = Image.new("RGB", (columns * STEP, ceil(len(chosen) / columns) * STEP), "white")
    for index, sample in enumerate(chosen):
        image = mmcv.imread(str(sample.image))
        if image is None:
            raise ValueError(f"{sample.image} cannot be read")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mmengine's, of what reaches the border
            picture = draw[dataset.task](sample, mmcv.bgr2rgb(image), meta)
        sheet.paste(Image.fromarray(picture), (index % columns * STEP, index // columns * STEP))
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG")


def _draw_shapes(sample: Sample, image: np.ndarray, meta: dict) -> np.ndarray:
    from mmdet.visualization import DetLocalVisualizer

    shapes, size = sample.shapes, image.shape[1::-1]
    image, scale = mmcv.imrescale(image, (CELL, CELL), return_scale=True)
    boxes = torch.tensor([shape.bbox for shape in shapes]).reshape(-1, 4) * scale
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([meta["classes"].index(shape.category) for shape in shapes]).long()
    instances = InstanceData(bboxes=boxes, labels=labels)
    if shapes and all(shape.polygons or shape.rle for shape in shapes):
        masks = [coco_mask.decode(encode_mask(shape, size)) for shape in shapes]
        instances.masks = np.stack([cv2.resize(mask, image.shape[1::-1]) for mask in masks]) > 0
    visualizer = DetLocalVisualizer(alpha=0.4)
    visualizer.dataset_meta = meta
    visualizer.add_datasample("", image, BaseDataElement(gt_instances=instances), draw_pred=False)
    return visualizer.get_image()


def _draw_labels(sample: Sample, image: np.ndarray, meta: dict) -> np.ndarray:
    from mmseg.visualization import SegLocalVisualizer

    image = mmcv.imrescale(image, (CELL // 2, CELL // 2))  # mmseg takes long for large pictures
    label_map = Image.open(sample.label_map).resize(image.shape[1::-1], Image.Resampling.NEAREST)
    labels = PixelData(data=torch.from_numpy(np.array(label_map, np.uint8))[None])
    visualizer = SegLocalVisualizer(alpha=0.4)
    visualizer.dataset_meta = meta
    visualizer.add_datasample("", image, BaseDataElement(gt_sem_seg=labels), draw_pred=False)
    return mmcv.imrescale(visualizer.get_image(), (CELL, CELL))


def _draw_name(sample: Sample, image: np.ndarray, meta: dict) -> np.ndarray:
    from mmpretrain.visualization import UniversalVisualizer

    image = mmcv.imrescale(image, (CELL, CELL))
    visualizer = UniversalVisualizer()
    visualizer.dataset_meta = meta
    label = torch.tensor([meta["classes"].index(sample.category)])
    return visualizer.visualize_cls(image, BaseDataElement(gt_label=label), draw_pred=False)
