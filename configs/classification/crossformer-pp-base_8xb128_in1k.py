_base_ = "crossformer-small_8xb128_in1k.py"

model = dict(backbone=dict(arch="pp-base", lda_mode="fixed_group"))
