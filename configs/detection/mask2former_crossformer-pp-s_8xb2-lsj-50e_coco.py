_base_ = "_base_/recipes/mask2former_8xb2-lsj-50e_coco.py"

model = dict(backbone=dict(arch="pp-small"), panoptic_head=dict(in_channels=[64, 128, 256, 512]))
