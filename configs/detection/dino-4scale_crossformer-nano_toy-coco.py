# The shipped DINO in small, for the toy data of tools/make_toy_dataset.py.
_base_ = "dino-4scale_crossformer-s_8xb2-12e_coco.py"

max_epochs = 12
# The 256 channels of attention stay: mmdet 3.3 has DINO with no other number.
layer = dict(ffn_cfg=dict(feedforward_channels=256))

model = dict(
    num_queries=100,
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=32, depths=(1, 1, 2, 2), num_heads=(1, 2, 4, 8))
    ),
    neck=dict(in_channels=[64, 128, 256]),
    encoder=dict(num_layers=1, layer_cfg=layer),
    decoder=dict(num_layers=2, layer_cfg=layer),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=20)),
    test_cfg=dict(max_per_img=100),
)

resize = dict(type="Resize", scale=(256, 192), keep_ratio=True)
train_pipeline = _base_.train_pipeline
train_pipeline[3] = resize
test_pipeline = _base_.test_pipeline
test_pipeline[1] = resize

data_root = "data/toy_coco/"
train_dataloader = dict(
    batch_size=4, num_workers=1, dataset=dict(data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
# From scratch, the backbone learns as fast as the rest.
optim_wrapper = dict(
    optimizer=dict(lr=5e-4), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0)))
)
default_hooks = dict(logger=dict(interval=25), visualization=dict(score_thr=0.5))
randomness = dict(seed=0)
