"""Configs in checkpoints, which mmengine's inferencers run as Python: plain data stays, no more."""

import pytest
import torch
from conftest import NANO_CONFIG
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from crossformer_mm.checkpoints.config_text import is_plain


def test_the_text_that_mmengine_writes_stays():
    text = Config.fromfile(NANO_CONFIG).pretty_text
    assert "custom_imports" in text and is_plain(text)


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "model = __import__('os').system('true')",
        "model = dict(type=open('file'))",
        "model = [x for x in range(9)]",
        "model = dict(a=(lambda: 1)())",
        "_base_ = 'other.py'",
        "_base_: str = 'other.py'",
        "model.a = 1",
        "model = f'{print()}'",
        "model = 1 if True else 2",
        "dict = print",
        "(",
        "model = " + "[" * 10_000,
        "\0",
        7,
    ],
)
def test_anything_else_is_left_out_before_an_inferencer_sees_it(tmp_path, text):
    saved = dict(
        state_dict=dict(a=torch.ones(1)),
        meta=dict(cfg=text, config=text, epoch=3),
        message_hub=dict(runtime_info=dict(cfg=text, iter=5), log_scalars={}),
    )
    torch.save(saved, tmp_path / "w.pth")
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / "w.pth"))
    assert loaded["meta"] == dict(epoch=3)
    assert loaded["message_hub"] == dict(runtime_info=dict(iter=5), log_scalars={})
