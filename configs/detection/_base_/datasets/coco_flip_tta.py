# Test-time augmentation: each image and its mirror image. For boxes: masks cannot be merged.
_base_ = "coco_detection.py"

tta_model = dict(
    type="DetTTAModel", tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100)
)
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=_base_.image_scale, keep_ratio=True)],
            [dict(type="RandomFlip", prob=1.0), dict(type="RandomFlip", prob=0.0)],
            [dict(type="LoadAnnotations", with_bbox=True)],
            [dict(type="PackDetInputs", meta_keys=(*_base_.meta_keys, "flip", "flip_direction"))],
        ],
    ),
]
