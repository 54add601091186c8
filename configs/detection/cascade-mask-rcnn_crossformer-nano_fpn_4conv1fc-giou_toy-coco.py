# The shipped Cascade Mask R-CNN in small: it learns the toy data of tools/make_toy_dataset.py from
# scratch in minutes on two CPU cores.
_base_ = "cascade-mask-rcnn_crossformer-s-g14_fpn_4conv1fc-giou_ms-crop-3x_coco.py"

max_epochs = 4
norm_cfg = dict(type="BN")
bbox_heads = _base_.model.roi_head.bbox_head
for head in bbox_heads:
    head.update(num_shared_convs=1, in_channels=64, conv_out_channels=64, fc_out_channels=256)
rcnn_train_cfgs = _base_.model.train_cfg.rcnn
for rcnn in rcnn_train_cfgs:
    rcnn.sampler.num = 64

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=32, depths=(1, 1, 2, 2), num_heads=(1, 2, 4, 8))
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=bbox_heads,
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(in_channels=64, num_convs=2, conv_out_channels=64, norm_cfg=norm_cfg),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=rcnn_train_cfgs),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)

image_scale = (256, 192)
resize = dict(
    type="RandomChoiceResize",
    scales=[(short, 320) for short in range(160, 225, 16)],
    keep_ratio=True,
)
crop = dict(
    type="RandomCrop", crop_type="absolute_range", crop_size=(96, 160), allow_negative_crop=True
)
train_pipeline = _base_.train_pipeline
train_pipeline[3].transforms = [[resize], [resize, crop, resize]]
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = image_scale

data_root = "data/toy_coco/"
train_dataloader = dict(
    batch_size=4, num_workers=1, dataset=dict(data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type="CosineAnnealingLR", begin=0, end=max_epochs, by_epoch=True, convert_to_iter_based=True
    ),
]
default_hooks = dict(logger=dict(interval=25), visualization=dict(score_thr=0.5))
randomness = dict(seed=0)
