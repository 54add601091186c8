_base_ = "crossformer-small_8xb128_in1k.py"

model = dict(backbone=dict(arch="pp-huge", lda_mode="fixed_group"), head=dict(in_channels=1024))
