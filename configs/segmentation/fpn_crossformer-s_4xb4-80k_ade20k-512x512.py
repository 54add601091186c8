_base_ = [
    "_base_/models/fpn_crossformer.py",
    "_base_/datasets/ade20k_512x512.py",
    "_base_/schedules/adamw_80k.py",
    "_base_/default_runtime.py",
]
