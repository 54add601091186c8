_base_ = "crossformer-small_8xb128_in1k.py"

model = dict(backbone=dict(arch="pp-small", lda_mode="fixed_group"), head=dict(in_channels=512))
