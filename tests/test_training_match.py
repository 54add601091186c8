"""Resuming: what goes on otherwise than the config has it is said, what cannot go on is refused."""

import copy
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path

import mmengine.runner.runner
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.engine.hooks.checkpoint_match import CheckpointMatchHook
from crossformer_mm.engine.runner import CheckedRunner
from crossformer_mm.utils.errors import CheckpointError


class Samples(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.full((3,), float(index)))


class Line(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, inputs: torch.Tensor, mode: str) -> dict:
        return dict(loss=self.layer(inputs).square().mean())


WARM_UP = dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=3)
COSINE = dict(type="CosineAnnealingLR", T_max=2, convert_to_iter_based=True)
ADAMW, SGD = dict(type="AdamW", lr=0.01), dict(type="SGD", lr=0.01, momentum=0.9)
BY_ITERATION = dict(type="IterBasedTrainLoop", max_iters=6)


def train(
    work_dir: Path, checkpoint: Path | None = None, batch: int = 2, **changes: object
) -> CheckedRunner:
    """Train a line for two epochs of four iterations, and save after each."""
    config = dict(
        train_dataloader=dict(
            batch_size=batch,
            num_workers=0,
            dataset=Samples(),
            sampler=dict(type="DefaultSampler"),
            collate_fn=dict(type="default_collate"),
        ),
        train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=2),
        optim_wrapper=dict(optimizer=ADAMW),
        param_scheduler=[WARM_UP, COSINE],
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1)),
    )
    runner = CheckedRunner(
        Line(),
        str(work_dir),
        **{**config, **changes},
        load_from=checkpoint and str(checkpoint),
        resume=checkpoint is not None,
        experiment_name=f"test-{work_dir.name}-{len(list(work_dir.glob('*')))}",
        cfg=dict(train_dataloader=dict(batch_size=batch)),
    )
    runner.register_hook(CheckpointMatchHook(checkpoint is not None, checkpoint is not None))
    runner.train()
    return runner


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A work directory after two epochs."""
    work_dir = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmengine.runner.runner, "collect_env", dict)
        train(work_dir)
    return work_dir


@pytest.fixture
def resume(saved, tmp_path, monkeypatch) -> Callable:
    """Change the checkpoint after the first epoch, resume it, and return what was logged."""
    monkeypatch.setattr(mmengine.runner.runner, "collect_env", dict)

    def resume(change: Callable[[dict], object] = lambda c: None, **changes: object) -> list[str]:
        content = copy.deepcopy(load_file(saved / "epoch_1.pth"))
        change(content)
        torch.save(content, tmp_path / "changed.pth")
        (tmp_path / "work").mkdir()
        warnings: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: warnings.append(record.getMessage())
        with monkeypatch.context() as patch:
            build = CheckedRunner.build_logger

            def build_logger(*args: object, **kwargs: object) -> logging.Logger:
                logger = build(*args, **kwargs)
                logger.addHandler(handler)
                return logger

            patch.setattr(CheckedRunner, "build_logger", build_logger)
            train(tmp_path / "work", tmp_path / "changed.pth", **changes)
        return [text for text in warnings if "metainfo" not in text and "FileClient" not in text]

    return resume


def entry(*keys: object) -> Callable:
    """A change that takes an entry away, or with a value for it, sets that."""

    def change(content: dict, *value: object) -> None:
        for key in keys[:-1]:
            content = content[key]
        if value:
            content[keys[-1]] = value[0]
        else:
            del content[keys[-1]]

    return change


def to(value: object, *keys: object) -> Callable:
    return lambda content: entry(*keys)(content, value)


OTHER_CLASSES = to(torch.ones(5, 3), "state_dict", "layer.weight")
MOMENT = ("optimizer", "state", 0, "exp_avg")
# What is changed in the checkpoint, and in the config, and what is said.
REFUSED: dict[str, tuple[Callable, dict, str]] = {
    "no meta": (entry("meta"), {}, "meta is a NoneType, not a dict"),
    "a list as meta": (to([1], "meta"), {}, "meta is a list, not a dict"),
    "no epoch": (entry("meta", "epoch"), {}, "meta.epoch is a NoneType, not a whole number"),
    "epoch -5": (to(-5, "meta", "epoch"), {}, "meta.epoch is -5, not a whole number"),
    "epoch NaN": (to(math.nan, "meta", "epoch"), {}, "meta.epoch is nan, not"),
    "epoch True": (to(True, "meta", "epoch"), {}, "meta.epoch is True, not"),
    "a text as iteration": (to("4", "meta", "iter"), {}, "meta.iter is '4', not"),
    "10^400": (to(10**400, "meta", "iter"), {}, "meta.iter is 1000"),
    "epoch 10^9": (to(10**9, "meta", "epoch"), {}, "at epoch 1000000000, past the config's .* 2$"),
    "past the end": (to(7, "meta", "iter"), dict(train_cfg=BY_ITERATION), "iter 7, past .* 6$"),
    "a text as seed": (to("x", "meta", "seed"), {}, "meta.seed is 'x', not"),
    "weights only": (entry("message_hub"), {}, "holds weights, but not the state of a training"),
    "a damaged log": (to([], "message_hub"), {}, "its training state is damaged: "),
    "no optimizer": (entry("optimizer"), {}, "holds no state of an optimizer .*load_from=FILE"),
    "no state": (to({}, "optimizer", "state"), {}, "the state of its optimizer is empty"),
    "no groups": (entry("optimizer", "param_groups"), {}, "training state is damaged: KeyError"),
    "another optimizer": (
        lambda content: None,
        dict(optim_wrapper=dict(optimizer=SGD)),
        "its optimizer keeps exp_avg, exp_avg_sq, step, the config's SGD momentum_buffer: resume",
    ),
    "other classes": (OTHER_CLASSES, {}, "does not fit this model: .*layer.weight"),
    "another shape": (to(torch.ones(3, 2), *MOMENT), {}, r"exp_avg .* \(3, 2\), not \(2, 3\)$"),
    "NaN": (to(torch.ones(2, 3) * math.nan, *MOMENT), {}, "exp_avg .* has NaN or infinity"),
    "no schedules": (entry("param_schedulers"), {}, "holds no state of the schedules"),
    "fewer schedules": (entry("param_schedulers", 0), {}, "its 1 schedules are others than .* 2:"),
    "another schedule": (
        lambda content: content["param_schedulers"].reverse(),
        {},
        "its 2 schedules are others",
    ),
    "a text as step": (to("4", "param_schedulers", 0, "last_step"), {}, "last_step .* is '4'"),
}


@pytest.mark.fault("resuming")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_resumed_is_refused_in_one_line(resume, tmp_path, case):
    change, changes, said = REFUSED[case]
    with pytest.raises(CheckpointError, match=rf"^checkpoint .*changed\.pth: .*{said}") as caught:
        resume(change, **changes)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    assert not list((tmp_path / "work").glob("*.pth"))


WARNED: dict[str, tuple[Callable, dict, str]] = {
    "at the end": (to(2, "meta", "epoch"), {}, "Nothing is left to train: .* epoch 2, the last"),
    "other batches": (lambda c: None, dict(batch=4), "made 2 samples an iteration, the config 4: "),
    "others before": (
        entry("meta", "samples_per_iter"),
        dict(batch=4),
        "4 iterations in 1 epochs, the config 2 each",
    ),
    "half a state": (entry("optimizer", "state", 0), {}, "optimizer starts anew for 1 parameters"),
    "another lr": (
        lambda c: None,
        dict(optim_wrapper=dict(optimizer=dict(ADAMW, lr=0.1, weight_decay=0.5))),
        "Training goes on with the checkpoint's initial_lr, weight_decay, not the config's",
    ),
    "another schedule": (
        lambda c: None,
        dict(param_scheduler=[dict(WARM_UP, end=2), COSINE]),
        "goes on with the schedules' end, total_iters of the checkpoint",
    ),
}


@pytest.mark.fault("resuming")
@pytest.mark.parametrize("case", WARNED)
def test_what_goes_on_otherwise_than_the_config_has_it_is_said(resume, case):
    change, changes, said = WARNED[case]
    warnings = resume(change, **changes)
    assert re.search(said, "\n".join(warnings))


@pytest.mark.parametrize(
    "optimizer", [ADAMW, SGD, dict(type="SGD", lr=0.1), dict(type="Adagrad", lr=0.1)], ids=str
)
def test_a_training_that_fits_is_resumed_without_a_word(tmp_path, monkeypatch, resume, optimizer):
    monkeypatch.setattr(mmengine.runner.runner, "collect_env", dict)
    (tmp_path / "first").mkdir()
    changes = dict(optim_wrapper=dict(optimizer=optimizer))
    train(tmp_path / "first", **changes)
    other = load_file(tmp_path / "first/epoch_1.pth")
    assert resume(lambda c: (c.clear(), c.update(other)), **changes) == []
    once, again = (load_file(d / "epoch_2.pth") for d in (tmp_path / "first", tmp_path / "work"))
    torch.testing.assert_close(once["state_dict"], again["state_dict"], rtol=0, atol=0)
