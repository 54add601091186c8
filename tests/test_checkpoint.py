"""Loading weights: what fits, what is refused, and that nothing in a file is run."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from crossformer_mm import CrossFormer
from crossformer_mm.resume import find_checkpoint_to_resume
from crossformer_mm.safe_load import UnsafeCheckpointError, load_file

ARCH = dict(
    embed_dims=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), group_size=4, interval=(8, 4, 2, 1)
)


def pretrained(path: Path, **kwargs) -> CrossFormer:
    """A backbone that is told to load ``path``."""
    backbone = CrossFormer(
        **{"arch": ARCH, **kwargs}, init_cfg=dict(type="Pretrained", checkpoint=str(path))
    )
    backbone.init_weights()
    return backbone


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_checkpoints_of_every_layout_load(tmp_path, prefix, key):
    source = CrossFormer(ARCH, final_norm=True)
    weights = {prefix + name: value for name, value in source.state_dict().items()}
    weights[prefix.replace("backbone.", "") + "head.weight"] = torch.zeros(10, 128)
    weights[prefix + "layers.0.blocks.0.attn.biases"] = torch.zeros(49, 2)
    weights[prefix + "layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    torch.save(weights if key is None else {key: weights, "epoch": 3}, tmp_path / "w.pth")
    assert_same_weights(pretrained(tmp_path / "w.pth", final_norm=True), source)
    dense = pretrained(tmp_path / "w.pth")
    del source.norm
    assert_same_weights(dense, source)


def test_another_architecture_is_refused_and_the_right_one_named(tmp_path):
    torch.save(CrossFormer("tiny").state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(ValueError, match=r"tiny\.pth does not fit.*arch 'tiny'.*missing.*shape"):
        pretrained(tmp_path / "tiny.pth", arch="small")


def test_a_missing_weight_is_named_and_nothing_is_loaded(tmp_path):
    weights = CrossFormer(ARCH).state_dict()
    del weights["layers.2.blocks.1.mlp.fc1.bias"]
    torch.save(weights, tmp_path / "w.pth")
    backbone = CrossFormer(ARCH, init_cfg=dict(type="Pretrained", checkpoint=f"{tmp_path}/w.pth"))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=r"1 missing: layers\.2\.blocks\.1\.mlp\.fc1\.bias"):
        backbone.init_weights()
    assert all(torch.equal(before[n], v) for n, v in backbone.state_dict().items())


class Touch:
    """Unpickling it makes a file: proof that code ran."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["top", "meta", "state_dict"])
def test_a_hostile_file_is_refused_and_does_nothing(tmp_path, zipped, place):
    trace = tmp_path / "ran"
    content = {
        "top": Touch(trace),
        "meta": {"state_dict": {}, "meta": {"config": [Touch(trace)]}},
        "state_dict": {"state_dict": {"a": torch.ones(2), "b": Touch(trace)}},
    }[place]
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeCheckpointError, match=r"w\.pth.*(posix|nt)\.system"):
        load_file(tmp_path / "w.pth")
    assert not trace.exists()


def test_getattr_opens_no_way_out(tmp_path):
    class Reach:
        def __reduce__(self):
            return getattr, (torch.Size, "__init__")

    torch.save(Reach(), tmp_path / "w.pth")
    with pytest.raises(UnsafeCheckpointError, match="__init__"):
        load_file(tmp_path / "w.pth")


def test_unreadable_files_are_named(tmp_path):
    complete = tmp_path / "complete.pth"
    torch.save({"a": torch.ones(1000)}, complete)
    contents = {
        "empty": b"",
        "page": b"<!DOCTYPE html><html>Sign in</html>",
        "cut": complete.read_bytes()[:2000],
        "pickle": pickle.dumps([1, 2]),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.pth").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.pth is not a complete PyTorch checkpoint"):
            load_file(tmp_path / f"{name}.pth")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth does not exist"):
        load_file(tmp_path / "nowhere.pth")


def test_training_state_loads(tmp_path):
    from mmengine.logging import MessageHub

    hub = MessageHub.get_instance("test_training_state_loads")
    hub.update_scalar("train/loss", 0.5)
    hub.update_info("iter", 7)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved = {
        "message_hub": hub.state_dict(),
        "optimizer": optimizer.state_dict(),
        "state_dict": model.half().state_dict(),
    }
    torch.save(saved, tmp_path / "epoch_1.pth")
    loaded = load_file(tmp_path / "epoch_1.pth")
    assert loaded["message_hub"]["log_scalars"]["train/loss"].current() == 0.5
    assert torch.equal(loaded["state_dict"]["weight"], model.weight)
    moment = saved["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], moment)


def test_the_last_complete_checkpoint_is_resumed(tmp_path):
    assert find_checkpoint_to_resume(tmp_path) is None
    assert find_checkpoint_to_resume(tmp_path / "missing") is None
    for epoch in (2, 9, 10):
        torch.save({"a": torch.ones(1000)}, tmp_path / f"epoch_{epoch}.pth")
    torch.save({}, tmp_path / "best_coco_epoch_11.pth")
    assert find_checkpoint_to_resume(tmp_path).name == "epoch_10.pth"
    cut = (tmp_path / "epoch_10.pth").read_bytes()[:-100]
    (tmp_path / "epoch_10.pth").write_bytes(cut)
    assert not zipfile.is_zipfile(tmp_path / "epoch_10.pth")
    assert find_checkpoint_to_resume(tmp_path).name == "epoch_9.pth"
