_base_ = "upernet_crossformer-s_8xb2-160k_ade20k-512x512.py"

model = dict(
    backbone=dict(arch="pp-small"),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
