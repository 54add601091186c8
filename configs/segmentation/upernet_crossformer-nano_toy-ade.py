# The shipped UPerNet in small: it learns the toy data of tools/make_toy_dataset.py from scratch in
# minutes on two CPU cores.
_base_ = "upernet_crossformer-s_8xb2-160k_ade20k-512x512.py"

max_iters = 800
warmup_iters = 50
crop_size = (128, 128)
image_scale = (512, 160)

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=32, depths=(1, 1, 2, 2), num_heads=(1, 2, 4, 8))
    ),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=64),
    auxiliary_head=dict(in_channels=128, channels=32),
)

train_pipeline = _base_.train_pipeline
train_pipeline[3].scale = image_scale
train_pipeline[4].crop_size = crop_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = image_scale
tta_pipeline = _base_.tta_pipeline
for resize in tta_pipeline[1].transforms[0]:
    resize.scale = (resize.scale[0] // 4, resize.scale[1] * 5 // 16)

data_root = "data/toy_ade/"
train_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=False, begin=0, end=warmup_iters),
    dict(type="PolyLR", power=1.0, by_epoch=False, begin=warmup_iters, end=max_iters),
]
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=max_iters))
randomness = dict(seed=0)
