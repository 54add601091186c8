_base_ = [
    "_base_/models/retinanet_crossformer_fpn.py",
    "_base_/datasets/coco_flip_tta.py",
    "_base_/schedules/adamw_1x.py",
    "_base_/default_runtime.py",
]
