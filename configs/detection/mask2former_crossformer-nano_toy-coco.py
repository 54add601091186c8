# The shipped Mask2Former in small, for the toy data of tools/make_toy_dataset.py.
_base_ = "mask2former_crossformer-s_8xb2-lsj-50e_coco.py"

max_iters = 3000
channels = 64
image_size = (256, 256)
attention = dict(embed_dims=channels)
ffn = dict(embed_dims=channels, feedforward_channels=256)
positions = dict(num_feats=channels // 2)
batch_augments = _base_.data_preprocessor.batch_augments
batch_augments[0].size = image_size

model = dict(
    data_preprocessor=dict(batch_augments=batch_augments),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=32, depths=(1, 1, 2, 2), num_heads=(1, 2, 4, 8)),
        drop_path_rate=0.1,
    ),
    panoptic_head=dict(
        in_channels=[32, 64, 128, 256],
        feat_channels=channels,
        out_channels=channels,
        num_queries=30,
        pixel_decoder=dict(
            encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
            positional_encoding=positions,
        ),
        positional_encoding=positions,
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn),
        ),
    ),
    train_cfg=dict(num_points=1024),
)

train_pipeline = _base_.train_pipeline
train_pipeline[3].scale = image_size
train_pipeline[4].crop_size = image_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (256, 192)

data_root = "data/toy_coco/"
train_dataloader = dict(
    batch_size=4, num_workers=1, dataset=dict(data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator

train_cfg = dict(max_iters=max_iters, val_interval=max_iters, dynamic_intervals=None)
# From scratch, the backbone learns as fast as the rest.
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(
        custom_keys={
            key: dict(lr_mult=1.0) for key in _base_.optim_wrapper.paramwise_cfg.custom_keys
        }
    ),
)
param_scheduler = dict(end=max_iters, milestones=[max_iters * 9 // 10])
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=max_iters))
randomness = dict(seed=0)
