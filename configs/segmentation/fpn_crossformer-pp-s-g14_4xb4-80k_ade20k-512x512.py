_base_ = "fpn_crossformer-s-g14_4xb4-80k_ade20k-512x512.py"

model = dict(backbone=dict(arch="pp-small"), neck=dict(in_channels=[64, 128, 256, 512]))
