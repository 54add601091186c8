_base_ = [
    "_base_/models/cascade-mask-rcnn_crossformer_fpn_4conv1fc-giou.py",
    "_base_/datasets/coco_instance_ms-crop.py",
    "_base_/schedules/adamw_3x.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(group_size=(14, 14, 7, 7), interval=(16, 8, 2, 1)))
