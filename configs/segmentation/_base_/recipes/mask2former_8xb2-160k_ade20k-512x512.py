# mmseg's Mask2Former for 160,000 iterations, over a CrossFormer with groups of 7 tokens ("7s"); the
# optimizer treats the backbone as in mmseg's recipe for Swin-T.
# "mmseg::NAME" would not do: with the onedl packages, mmengine does not find mmseg.
_base_ = (
    __import__("mmseg").__path__[0]
    + "/.mim/configs/mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py"
)
# The library's config imports the second, which this entry would replace.
custom_imports = dict(imports=["crossformer_mm", "mmdet.models"], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type="CrossFormer",
        arch="small",
        group_size=(7, 7, 7, 7),
        interval=(8, 4, 2, 1),
        drop_path_rate=0.3,
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)

# Labels are checked wherever they are loaded.
train_pipeline = _base_.train_pipeline
train_pipeline.insert(2, dict(type="CheckSegLabels"))
test_pipeline = _base_.test_pipeline
test_pipeline.insert(3, dict(type="CheckSegLabels"))
data_root = "data/ade/ADEChallengeData2016/"
train_dataloader = dict(dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader

# Neither norms nor the position bias are decayed. The longest key in a parameter's name counts, so
# those of norms, to be longer than "backbone", name the parameters too.
not_decayed = [
    f"{norm}.{kind}" for norm in ("norm1", "norm2", "ex_ln") for kind in ("weight", "bias")
]
not_decayed += ["patch_embed.norm", "downsample.norm", ".attn.pos."]
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={key: dict(lr_mult=0.1, decay_mult=0.0) for key in not_decayed})
)
