_base_ = "fpn_crossformer-s_4xb4-80k_ade20k-512x512.py"

model = dict(backbone=dict(group_size=(14, 14, 7, 7), interval=(16, 8, 2, 1)))
