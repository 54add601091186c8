_base_ = "upernet_crossformer-s_8xb2-160k_ade20k-512x512.py"

model = dict(backbone=dict(group_size=(14, 14, 7, 7), interval=(16, 8, 2, 1)))
