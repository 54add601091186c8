# mmdet's Mask2Former for instances, 50 epochs of large scale jittering, over a CrossFormer with
# groups of 7 tokens ("7s"); the optimizer treats the backbone as in mmdet's recipe for Swin-T.
_base_ = "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py"
custom_imports = dict(imports=["crossformer_mm"], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type="CrossFormer",
        arch="small",
        group_size=(7, 7, 7, 7),
        interval=(8, 4, 2, 1),
        drop_path_rate=0.3,
    ),
    panoptic_head=dict(in_channels=[96, 192, 384, 768]),
)

# Neither norms nor the position bias are decayed. The longest key in a parameter's name counts, so
# those of norms, to be longer than "backbone", name the parameters too.
not_decayed = [
    f"{norm}.{kind}" for norm in ("norm1", "norm2", "ex_ln") for kind in ("weight", "bias")
]
not_decayed += ["patch_embed.norm", "downsample.norm", ".attn.pos."]
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={key: dict(lr_mult=0.1, decay_mult=0.0) for key in not_decayed})
)
