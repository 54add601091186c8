# The shipped Mask2Former in small, for the toy data of tools/make_toy_dataset.py.
_base_ = "mask2former_crossformer-s_8xb2-160k_ade20k-512x512.py"

max_iters = 1600
channels = 64
crop_size = (128, 128)
attention = dict(embed_dims=channels)
ffn = dict(embed_dims=channels, feedforward_channels=256)
positions = dict(num_feats=channels // 2)

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=32, depths=(1, 1, 2, 2), num_heads=(1, 2, 4, 8)),
        drop_path_rate=0.1,
    ),
    decode_head=dict(
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
        train_cfg=dict(num_points=1024),
    ),
)

train_pipeline = _base_.train_pipeline
train_pipeline[3].update(scales=[80, 120, 160, 200, 240, 320], max_size=512)
train_pipeline[4].crop_size = crop_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (512, 160)

data_root = "data/toy_ade/"
train_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
# From scratch, the backbone learns as fast as the rest.
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(
        custom_keys={
            key: dict(lr_mult=1.0) for key in _base_.optim_wrapper.paramwise_cfg.custom_keys
        }
    ),
)
param_scheduler = [dict(type="PolyLR", power=0.9, by_epoch=False, begin=0, end=max_iters)]
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=max_iters))
randomness = dict(seed=0)
