_base_ = "fpn_crossformer-s_4xb4-80k_ade20k-512x512.py"

model = dict(backbone=dict(arch="base"))
