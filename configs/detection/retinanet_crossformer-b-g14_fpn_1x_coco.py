_base_ = "retinanet_crossformer-s-g14_fpn_1x_coco.py"

model = dict(backbone=dict(arch="base"))
