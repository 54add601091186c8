"""Compare the state of a training to resume with the config's, which mmengine takes as it is."""

import copy
from collections import defaultdict
from collections.abc import Mapping

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn

from crossformer_mm.utils.errors import CheckpointError, describe, one_line

HOW_TO_START = "start from its weights with --cfg-options load_from=FILE"
BATCH = "samples_per_iter"  # in meta: of all processes together
# What changes while a schedule runs.
MOVING = {"last_step", "_global_step", "_last_value", "base_values", "verbose"}


def check_training(runner: Runner, checkpoint: dict) -> None:
    """Compare a checkpoint with what a runner is about to resume.

    Warnings say what goes on otherwise than the config has it.

    Raises:
        CheckpointError: If a part of the state is missing, or is of another training.
    """
    _check_place(runner, checkpoint.get("meta"))
    had_no_step = not checkpoint["meta"]["iter"] or bool(checkpoint.get("gradients"))
    _check_optimizer(runner, checkpoint.get("optimizer"), is_new=had_no_step)
    _check_schedules(runner, checkpoint.get("param_schedulers"))


def samples_per_iteration(runner: Runner) -> int | None:
    """Of all processes together; None if the config does not say."""
    size = (runner.cfg.get("train_dataloader") or {}).get("batch_size")
    return size and size * runner.world_size


def _check_place(runner: Runner, meta: object) -> None:
    """Compare the epoch and iteration, and how many samples an iteration takes."""
    if not isinstance(meta, dict):
        raise CheckpointError(f"meta is {describe(meta)}, not a dict with epoch and iter")
    for key, largest in dict(epoch=1 << 62, iter=1 << 62, seed=(1 << 32) - 1).items():
        value = meta.get(key)
        is_number = type(value) is int and 0 <= value <= largest
        if not is_number and (key != "seed" or value is not None):
            shown = one_line(repr(value), 50) if type(value) in (float, int, bool) else None
            raise CheckpointError(f"meta.{key} is {shown or describe(value)}, not a whole number")
    meta.pop("config", None)  # mmengine looks in it for a number of GPUs, and stops
    loop = runner.train_loop
    is_by_epoch = isinstance(loop, EpochBasedTrainLoop)
    unit, end = ("epoch", loop.max_epochs) if is_by_epoch else ("iter", loop.max_iters)
    if meta[unit] > end:
        raise CheckpointError(f"is at {unit} {meta[unit]}, past the config's last, {end}")
    if meta[unit] == end:
        runner.logger.warning(
            f"Nothing is left to train: the checkpoint is at {unit} {end}, the last"
        )
    saved, own = meta.get(BATCH), samples_per_iteration(runner)
    done = meta["iter"] - meta.get("iters_of_epoch", 0)
    if type(saved) is int and saved != own:
        differs = f"{saved} samples an iteration, the config {own}"
    elif is_by_epoch and done != meta["epoch"] * len(loop.dataloader):
        differs = (
            f"{done} iterations in {meta['epoch']} epochs, the config {len(loop.dataloader)} each"
        )
    else:
        return
    runner.logger.warning(
        f"The checkpoint made {differs}: what counts iterations, such as schedules, is at another "
        "place in the data, and the learning rate stays that of the checkpoint"
    )


def _check_optimizer(runner: Runner, saved: object, is_new: bool) -> None:
    """Compare the optimizer's groups, their options and what it keeps for each parameter."""
    if not isinstance(saved, dict):
        raise CheckpointError(
            f"holds no state of an optimizer (save_optimizer=False?): {HOW_TO_START}"
        )
    if not isinstance(runner.optim_wrapper, OptimWrapper):
        return  # several
    optimizer = runner.optim_wrapper.optimizer
    groups, own_groups = saved["param_groups"], optimizer.param_groups
    counts, own = ([len(group["params"]) for group in each] for each in (groups, own_groups))
    if counts != own:
        raise CheckpointError(
            f"the checkpoint to resume trained {sum(counts)} parameters in {len(counts)} groups, "
            f"the config trains {sum(own)} in {len(own)}: resume with the same frozen_stages and "
            f"optim_wrapper, or {HOW_TO_START}"
        )
    pairs = list(zip(groups, own_groups, strict=True))
    if options := {key for one, other in pairs for key in _differing(one, other, {"lr", "params"})}:
        names = ", ".join(sorted(options))
        runner.logger.warning(f"Training goes on with the checkpoint's {names}, not the config's")
    without, kept = 0, {}
    for saved_group, group in pairs:
        for key, parameter in zip(saved_group["params"], group["params"], strict=True):
            shape = parameter.shape, id(group)
            if shape not in kept:
                kept[shape] = _what_is_kept(optimizer, group, parameter)
            found = saved["state"].get(key)
            if found:
                _compare_state(found, kept[shape], type(optimizer).__name__)
            without += bool(not found and kept[shape] and parameter.requires_grad)
    if without and not saved["state"] and not is_new:
        raise CheckpointError(f"the state of its optimizer is empty: {HOW_TO_START}")
    if without and not is_new:
        runner.logger.warning(f"The optimizer starts anew for {without} parameters without a state")


def _what_is_kept(optimizer: torch.optim.Optimizer, group: dict, like: Tensor) -> dict | None:
    """What an optimizer keeps for a parameter after a step; None if one alone cannot be tried."""
    trial = nn.Parameter(torch.zeros_like(like))
    trial.grad = torch.zeros_like(like)
    other = copy.copy(optimizer)
    other.param_groups, other.state = [{**group, "params": [trial]}], defaultdict(dict)
    try:
        other.step()
    except Exception:  # an optimizer of any library
        return None
    return other.state[trial]


def _compare_state(found: Mapping, kept: Mapping | None, name: str) -> None:
    """Raise CheckpointError if the state of a parameter is not of the form that is kept."""
    found = {key: value for key, value in found.items() if value is not None}
    kept = found if kept is None else {k: v for k, v in kept.items() if v is not None}
    if found.keys() != kept.keys():
        saved, own = (", ".join(sorted(map(str, keys))) or "nothing" for keys in (found, kept))
        raise CheckpointError(
            f"its optimizer keeps {one_line(saved)}, the config's {name} {own}: resume with the "
            f"same optimizer, or {HOW_TO_START}"
        )
    for key, value in found.items():
        if not isinstance(value, Tensor):
            continue
        if isinstance(kept[key], Tensor) and value.shape != kept[key].shape:
            shapes = f"{tuple(value.shape)}, not {tuple(kept[key].shape)}"
            raise CheckpointError(f"its optimizer's {key} of a parameter is of shape {shapes}")
        if value.is_complex() or not value.isfinite().all():
            raise CheckpointError(f"its optimizer's {key} of a parameter has NaN or infinity")


def _check_schedules(runner: Runner, saved: object) -> None:
    """Compare the settings of schedules, which mmengine takes from the checkpoint."""
    own = runner.param_schedulers or []
    if isinstance(own, dict):
        return  # of several optimizers
    if own and not isinstance(saved, list):
        raise CheckpointError(f"holds no state of the schedules: {HOW_TO_START}")
    states = [schedule.state_dict() for schedule in own]
    if [state.keys() for state in saved or []] != [state.keys() for state in states]:
        raise CheckpointError(
            f"its {len(saved or [])} schedules are others than the config's {len(own)}: resume "
            f"with the same param_scheduler, or {HOW_TO_START}"
        )
    names = set()
    for one, other in zip(saved or [], states, strict=True):
        if type(one.get("last_step", 0)) is not int:
            raise CheckpointError(f"last_step of a schedule is {describe(one['last_step'])}")
        names |= _differing(one, other, MOVING)
    if names:
        shown = ", ".join(sorted(names))
        runner.logger.warning(f"Training goes on with the schedules' {shown} of the checkpoint")


def _differing(saved: Mapping, own: Mapping, but: set[str]) -> set[str]:
    """The settings that are in both, and not the same."""
    return {str(key) for key in (saved.keys() & own.keys()) - but if saved[key] != own[key]}
