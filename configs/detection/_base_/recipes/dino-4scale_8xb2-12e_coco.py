# mmdet's DINO for 12 epochs, over a CrossFormer with groups of 7 tokens ("7s").
_base_ = "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"
custom_imports = dict(imports=["crossformer_mm"], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type="CrossFormer",
        arch="small",
        group_size=(7, 7, 7, 7),
        interval=(8, 4, 2, 1),
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
