_base_ = "mask-rcnn_crossformer-s_fpn_1x_coco.py"

model = dict(backbone=dict(arch="large"), neck=dict(in_channels=[128, 256, 512, 1024]))
