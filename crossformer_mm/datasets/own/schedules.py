"""How long to train on a data set, and with which learning rate: the ends of written configs."""

from collections.abc import Mapping, Sequence
from math import ceil

TEXT = """\
# Chosen: {iterations:,} iterations, {epochs} epochs of these images; from {least} to {most} {unit}
max_{unit} = {length}
train_cfg = dict(max_{unit}=max_{unit}, val_interval={interval})
# The base's learning rate is for more images at a time; for fewer it falls with the square root,
# as suits Adam. For several GPUs: --auto-scale-lr.
share = {batch} / _base_.auto_scale_lr.base_batch_size
optim_wrapper = dict(optimizer=dict(lr=_base_.optim_wrapper.optimizer.lr * share**0.5))
auto_scale_lr = dict(base_batch_size={batch})
{schedulers}

# About ten pictures of predictions at each validation, in the work folder's vis_data
default_hooks = dict(
    checkpoint=dict(interval={interval}, max_keep_ckpts=3, save_best="{metric}"),
    visualization=dict({switch}=True, interval={pictures}),
)
randomness = dict(seed=0)
"""
STEPS = """\
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = min(500, max_epochs * {per_epoch} // 10)  # iterations of warm-up
param_scheduler[1].end = max_epochs
param_scheduler[1].milestones = [max_epochs * 8 // 12, max_epochs * 11 // 12]"""
POLYNOMIAL = """\
warmup = dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=max_iters // 20)
decay = dict(_base_.param_scheduler[-1], begin=max_iters // 20, end=max_iters)
param_scheduler = [warmup, decay]"""
COSINE = """\
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = param_scheduler[1].begin = max_epochs // 15  # of warm-up
param_scheduler[1].end = max_epochs"""


def write_schedule(task: str, batch: int, splits: Mapping[str, Sequence]) -> str:
    """Write the end of a config for so many images at a time, and those of the splits."""
    per_epoch = ceil(len(splits["train"]) / batch)
    iterations = dict(detection=6000, segmentation=64 * per_epoch, classification=3000)[task]
    epochs = iterations // per_epoch
    unit, length, least, most, schedulers, metric, switch = dict(
        detection=("epochs", epochs, 12, 100, STEPS, "coco/bbox_mAP", "draw"),
        segmentation=("iters", iterations, 2000, 80000, POLYNOMIAL, "mIoU", "draw"),
        classification=("epochs", epochs, 30, 100, COSINE, "accuracy/top1", "enable"),
    )[task]
    length = min(max(length, least), most)
    fields = dict(iterations=iterations, epochs=epochs, unit=unit, least=least, most=most)
    fields |= dict(length=length, interval=max(1, length // 12), metric=metric, switch=switch)
    fields |= dict(batch=batch, pictures=ceil(len(splits["val"]) / 10))
    return TEXT.format(schedulers=schedulers.format(per_epoch=per_epoch), **fields)
