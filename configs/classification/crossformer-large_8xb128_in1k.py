_base_ = "crossformer-small_8xb128_in1k.py"

model = dict(backbone=dict(arch="large"), head=dict(in_channels=1024))
