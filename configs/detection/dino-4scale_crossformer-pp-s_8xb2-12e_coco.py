_base_ = "_base_/recipes/dino-4scale_8xb2-12e_coco.py"

model = dict(backbone=dict(arch="pp-small"), neck=dict(in_channels=[128, 256, 512]))
