_base_ = "../crossformer-small_8xb128_in1k.py"
model = dict(backbone=dict(position_bias="rpb"))
_no_decay = {".relative_position_bias_table": dict(decay_mult=0.0)}
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_no_decay))
