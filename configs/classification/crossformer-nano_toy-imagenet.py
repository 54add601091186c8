# The shipped classifier in small: it learns the toy data of tools/make_toy_dataset.py from scratch
# in minutes on two CPU cores.
_base_ = "crossformer-small_8xb128_in1k.py"

max_epochs = 20
warmup_epochs = 1

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=32,
            depths=(1, 1, 2, 2),
            num_heads=(1, 2, 4, 8),
            group_size=7,
            interval=(4, 2, 1, 1),
        )
    ),
    head=dict(in_channels=256),
    train_cfg=dict(_delete_=True),
)

# So few images of so simple things need no more augmentation than this.
load, crop, flip, _, _, pack = _base_.train_pipeline
crop.update(scale=112, crop_ratio_range=(0.5, 1.0))
train_pipeline = [load, crop, flip, pack]
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 128
test_pipeline[2].crop_size = 112

data_root = "data/toy_imagenet/"
train_dataloader = dict(
    batch_size=32, num_workers=1, dataset=dict(data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(_base_.param_scheduler[0], start_factor=1e-2, end=warmup_epochs),
    dict(_base_.param_scheduler[1], begin=warmup_epochs, end=max_epochs),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=max_epochs))
randomness = dict(seed=0)
