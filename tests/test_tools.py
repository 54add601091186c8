"""train.py and test.py: the main job from end to end, and one line for what is wrong."""

import math
import pickle
import re
import shutil
from argparse import ArgumentParser
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import CONFIGS, NANO_CONFIG, ROOT, apply_options, metrics_of, tool_main

from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.datasets.paths import move_paths
from crossformer_mm.engine import config
from crossformer_mm.engine.config import add_cfg_options, load_config
from crossformer_mm.engine.hooks.loss_check import InvalidLossError, LossCheckHook

TRAIN, TEST = ROOT / "tools/train.py", ROOT / "tools/test.py"
MASK_RCNN = CONFIGS / "detection/mask-rcnn_crossformer-nano_fpn_toy-coco.py"
PAGES = [(ROOT / f"docs/{name}.md").read_text() for name in ("training", "reliability")]


WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="said without a GPU")


def options(data_root: Path, *more: str) -> list[str]:
    """Options for short runs on the tiny data set."""
    given = ["--cfg-options", f"data_root={data_root}", "train_dataloader.batch_size=4"]
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        given += [f"{loader}.num_workers=0", f"{loader}.persistent_workers=False"]
    given += ["default_hooks.logger.interval=1", "model.test_cfg.score_thr=0.0"]
    return [*given, "train_cfg.val_interval=100", *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, toy_coco) -> Path:
    """A work directory after three epochs."""
    work_dir = tmp_path_factory.mktemp("trained")
    tool_main(
        *(TRAIN, NANO_CONFIG, "--work-dir", work_dir),
        *options(toy_coco, "train_cfg.max_epochs=3", "default_hooks.checkpoint.max_keep_ckpts=3"),
    )
    return work_dir


@pytest.mark.families
def test_training_resumed_at_the_end_of_an_epoch_ends_with_the_same_weights(
    trained, toy_coco, tmp_path, capsys
):
    shutil.copy(trained / "epoch_2.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text("")  # as if killed while it was being written
    tool_main(
        *(TRAIN, NANO_CONFIG, "--work-dir", tmp_path, "--resume"),
        *options(toy_coco, "train_cfg.max_epochs=3"),
    )
    assert f"Resuming from {tmp_path}/epoch_2.pth" in capsys.readouterr().out
    first, once, again = (
        load_file(file)["state_dict"]
        for file in (trained / "epoch_1.pth", trained / "epoch_3.pth", tmp_path / "epoch_3.pth")
    )
    torch.testing.assert_close(once, again, rtol=0, atol=0)
    assert [name for name, value in once.items() if torch.equal(value, first[name])] == []


@pytest.mark.families
def test_one_and_two_processes_give_the_same_metrics(trained, toy_coco, run_tool, tmp_path):
    checkpoint = trained / "epoch_3.pth"
    evaluate = ["--eval", "bbox", *options(toy_coco)]
    run_tool(
        *("bash", ROOT / "tools/dist_test.sh", NANO_CONFIG, 2, checkpoint),
        *("--work-dir", tmp_path / "2", *evaluate),
    )
    tool_main(TEST, NANO_CONFIG, checkpoint, "--work-dir", tmp_path / "1", *evaluate)
    one, two = (
        {k: v for k, v in metrics_of(tmp_path / n).items() if k.startswith("coco/")} for n in "12"
    )
    assert one == two and "coco/bbox_mAP" in one


def test_predictions_are_written_drawn_and_changed_by_flipping(trained, toy_coco, tmp_path):
    test = (TEST, NANO_CONFIG, trained / "epoch_3.pth", "--work-dir", tmp_path)
    draw = ("--show-dir", tmp_path / "pictures")
    tool_main(*test, "--out", tmp_path / "plain.pkl", *draw, *options(toy_coco))
    tool_main(*test, "--out", tmp_path / "tta.pkl", "--tta", *options(toy_coco))
    plain, flipped = (pickle.loads((tmp_path / f"{n}.pkl").read_bytes()) for n in ("plain", "tta"))
    assert len(plain) == len(flipped) == 11
    for one, other in zip(plain, flipped, strict=True):
        assert one["img_id"] == other["img_id"]
        assert set(one["pred_instances"]) >= {"bboxes", "scores", "labels"}
        assert not torch.equal(one["pred_instances"]["scores"], other["pred_instances"]["scores"])
    drawn = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert drawn == sorted(path.name for path in (toy_coco / "val2017").iterdir())


@pytest.mark.fault("configs and command lines")
@pytest.mark.parametrize(
    ("tool", "arguments", "named"),
    [
        (TRAIN, ["nowhere.py"], "config nowhere.py does not exist"),
        (TRAIN, ["bad.py"], "config bad.py cannot be read"),
        (TRAIN, [NANO_CONFIG, "--pretrained", "no.pth"], "--pretrained no.pth does not exist"),
        (TRAIN, [NANO_CONFIG, "--resume", "no.pth"], "--resume no.pth does not exist"),
        (TRAIN, [NANO_CONFIG, "--cfg-options", "data_root=/no"], "annotation file /no/annot"),
        (TRAIN, [NANO_CONFIG, "--cfg-options", "no value"], "--cfg-options takes KEY=VALUE"),
        (TRAIN, [NANO_CONFIG, "--work-dir", NANO_CONFIG], "is not a folder: give another --work-"),
        (TEST, [NANO_CONFIG, "no.pth"], "checkpoint no.pth does not exist"),
        (TEST, [NANO_CONFIG, TEST, "--eval", "mask"], "--eval mask: choose from"),
        (TEST, [NANO_CONFIG, TEST, "--out", "p.txt"], "--out p.txt must end with .pkl"),
        (TEST, [NANO_CONFIG, TEST, "--cfg-options", "data_root=/no"], "annotation file /no/"),
        pytest.param(TRAIN, [NANO_CONFIG, "--amp"], "--amp needs a GPU", marks=WITHOUT_GPU),
        pytest.param(TEST, [NANO_CONFIG, TEST, "--amp"], "--amp needs a GPU", marks=WITHOUT_GPU),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(monkeypatch, tmp_path, tool, arguments, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "has_bf16", lambda: False)
    (tmp_path / "bad.py").write_text("model = dict(\n")
    with pytest.raises(SystemExit) as exit_info:
        tool_main(tool, *arguments)
    message = exit_info.value.code
    assert message.startswith("error: ") and named in message and "\n" not in message.strip()
    assert [path.name for path in tmp_path.iterdir()] == ["bad.py"]


@pytest.mark.fault("weights that do not fit, converting")
def test_a_checkpoint_of_another_model_fails_the_test(trained, toy_coco, tmp_path):
    config = CONFIGS / "detection/retinanet_crossformer-s_fpn_1x_coco.py"
    with pytest.raises(SystemExit, match=r"error: .*does not fit this model.*another shape"):
        tool_main(
            *(TEST, config, trained / "epoch_3.pth", "--work-dir", tmp_path),
            *("--cfg-options", f"data_root={toy_coco}"),
        )


def test_data_root_moves_every_path():
    cfg = load_config(str(NANO_CONFIG), {"data_root": "elsewhere/coco"})
    assert cfg.train_dataloader.dataset.data_root == "elsewhere/coco/"
    assert cfg.test_evaluator.ann_file == "elsewhere/coco/annotations/instances_val2017.json"
    assert "data/" not in cfg.pretty_text
    assert move_paths({"a": ("x/b", ["x/c", 1])}, "x/", "y/") == {"a": ("y/b", ["y/c", 1])}


@pytest.mark.fault("resuming")
def test_what_is_resumed(tmp_path):
    cfg = load_config(str(NANO_CONFIG), {"load_from": "start.pth"}, str(tmp_path))
    apply_options(TRAIN, cfg, resume="auto")
    assert (cfg.load_from, cfg.resume) == ("start.pth", False)
    torch.save({}, tmp_path / "epoch_3.pth")
    apply_options(TRAIN, cfg, resume="auto")
    assert (cfg.load_from, cfg.resume) == (str(tmp_path / "epoch_3.pth"), True)
    # The config of a resumed training can be tested.
    assert apply_options(TEST, cfg, checkpoint=str(NANO_CONFIG)).resume is False


def test_metrics_are_chosen_where_the_config_has_classes_for_types():
    from mmdet.evaluation import CocoMetric

    cfg = load_config(str(MASK_RCNN))
    cfg.test_evaluator.type = CocoMetric
    cfg = apply_options(TEST, cfg, checkpoint=str(NANO_CONFIG), eval=["segm"])
    assert cfg.test_evaluator[0].metric == ["segm"]


def documented_options() -> list[tuple[str, str]]:
    """The sections of two pages that show config lines and a command line for the same."""
    sections = re.findall(r"^## .*?\n(.*?)(?=^## |\Z)", "".join(PAGES), re.M | re.S)
    blocks = [dict(re.findall(r"```(bash|python)\n(.*?)```", text, re.S)) for text in sections]
    return [(found["python"], found["bash"]) for found in blocks if len(found) == 2]


@pytest.mark.parametrize(("lines", "command"), documented_options())
def test_config_line_and_command_line_say_the_same(tmp_path, lines, command):
    parser = ArgumentParser()
    add_cfg_options(parser)
    parser.add_argument("--amp", action="store_true")
    args = parser.parse_args(command.split())
    (tmp_path / "config.py").write_text(f"_base_ = {str(MASK_RCNN)!r}\n{lines}")
    by_option, by_line = load_config(str(MASK_RCNN), args.cfg_options), tmp_path / "config.py"
    by_line = load_config(str(by_line), work_dir=by_option.work_dir)
    if args.amp:
        by_option.optim_wrapper.update(type="AmpOptimWrapper", loss_scale="dynamic")
        by_line.optim_wrapper.setdefault("loss_scale", "dynamic")
    assert by_option.to_dict() == by_line.to_dict() != load_config(str(MASK_RCNN)).to_dict()


@pytest.mark.fault("configs and command lines")
@pytest.mark.parametrize(
    ("losses", "named"),
    [
        (dict(loss=math.nan, loss_cls=1.0, loss_bbox=math.nan, acc=1.0), "loss_bbox is nan"),
        (dict(loss=math.nan, loss_cls=math.inf, loss_bbox=-math.inf), "loss_cls is inf, loss_bbox"),
        (dict(loss=math.inf, loss_cls=3e38, loss_bbox=3e38), "loss is inf"),
        (dict(loss=math.nan), "loss is nan"),
        (dict(loss=1.0, decode_acc=math.nan), None),
        (None, None),
    ],
)
def test_the_iteration_and_the_invalid_loss_are_named(losses, named):
    outputs = losses and {name: torch.tensor(value) for name, value in losses.items()}
    error = pytest.raises(InvalidLossError, match=f"stopped at iteration 13: {named}")
    with error if named else nullcontext():
        LossCheckHook().after_train_iter(SimpleNamespace(iter=12), 0, None, outputs)


@pytest.mark.fault("configs and command lines")
@pytest.mark.parametrize("checked", [True, False])
def test_training_stops_at_an_invalid_loss_unless_told_otherwise(toy_coco, tmp_path, checked):
    command = [TRAIN, NANO_CONFIG, "--work-dir", tmp_path, *options(toy_coco)]
    command += ["model.bbox_head.loss_cls.loss_weight=1e39", "train_cfg.max_epochs=1"]
    if checked:
        with pytest.raises(SystemExit, match="^error: training stopped at iteration 1: .*inf"):
            tool_main(*command)
    else:
        tool_main(*command, "check_loss=False")
    assert (tmp_path / "epoch_1.pth").exists() != checked
