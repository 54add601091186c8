# 80,000 iterations of AdamW under polynomial decay, for Semantic FPN.
max_iters = 80000

train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=8000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=max_iters)
]

# 4 GPUs with 4 images each
auto_scale_lr = dict(enable=False, base_batch_size=16)
