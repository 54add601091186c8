_base_ = "mask-rcnn_crossformer-s-g14_fpn_ms-crop-3x_coco.py"

model = dict(backbone=dict(arch="base"))
