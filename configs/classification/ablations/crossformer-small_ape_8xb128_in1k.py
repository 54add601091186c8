_base_ = "../crossformer-small_8xb128_in1k.py"
model = dict(backbone=dict(position_bias="ape"))
_no_decay = {".pos_embed": dict(decay_mult=0.0)}
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_no_decay))
