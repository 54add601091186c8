_base_ = "../crossformer-small_8xb128_in1k.py"
model = dict(backbone=dict(position_bias="none"))
