_base_ = "mask-rcnn_crossformer-s_fpn_1x_coco.py"

model = dict(backbone=dict(group_size=(14, 14, 7, 7), interval=(16, 8, 2, 1)))
