"""The tools, as a user runs them: train, kill, resume, test, on one process and on two."""

import os
import pickle
import runpy
import signal
import subprocess
import sys
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import NANO_CONFIG, ROOT, metrics_of, tool_main
from mmengine.config import Config

from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.engine import launch

TRAIN, TEST = ROOT / "tools/train.py", ROOT / "tools/test.py"


def options(data_root: Path, *more: str) -> list[str]:
    """Options for short runs on the tiny data set."""
    return [
        "--cfg-options",
        f"data_root={data_root}",
        "train_dataloader.batch_size=4",
        "default_hooks.logger.interval=1",
        "model.test_cfg.score_thr=0.0",
        "train_cfg.val_interval=100",
        *more,
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, toy_coco, run_tool) -> Path:
    """A work directory after one epoch of training on two processes."""
    work_dir = tmp_path_factory.mktemp("trained")
    result = run_tool(
        *("bash", ROOT / "tools/dist_train.sh", NANO_CONFIG, 2, "--work-dir", work_dir),
        *options(toy_coco, "train_cfg.max_epochs=1"),
    )
    assert "Epoch(train) [1][2/2]" in result.stdout, result.stdout[-3000:]
    assert "2 CPU process(es)" in result.stdout or "2 GPU process(es)" in result.stdout
    return work_dir


@pytest.mark.families
def test_one_and_two_processes_give_the_same_metrics(trained, toy_coco, run_tool, tmp_path):
    checkpoint, found = trained / "epoch_1.pth", {}
    orders = {1: (checkpoint, 1), 2: (2, checkpoint)}
    for processes, order in orders.items():
        work_dir = tmp_path / str(processes)
        result = run_tool(
            *("bash", ROOT / "tools/dist_test.sh", NANO_CONFIG, *order),
            *("--work-dir", work_dir, "--eval", "bbox", *options(toy_coco)),
        )
        own = len(load_file(checkpoint)["state_dict"])
        assert f"Checkpoint: {own} of the model's {own} weights match" in result.stdout
        metrics = metrics_of(work_dir)
        found[processes] = {k: v for k, v in metrics.items() if k.startswith("coco/")}
    assert found[1] == found[2] and "coco/bbox_mAP" in found[1]


def predictions(path: Path) -> list[dict]:
    """What ``--out`` wrote."""
    return pickle.loads(path.read_bytes())


def test_predictions_are_written_drawn_and_changed_by_flipping(
    trained, toy_coco, run_tool, tmp_path
):
    run = (sys.executable, TEST, NANO_CONFIG, trained / "epoch_1.pth", "--work-dir", tmp_path)
    draw = ("--show-dir", tmp_path / "pictures")
    run_tool(*run, "--out", tmp_path / "plain.pkl", *draw, *options(toy_coco))
    run_tool(*run, "--out", tmp_path / "tta.pkl", "--tta", *options(toy_coco))
    plain, flipped = predictions(tmp_path / "plain.pkl"), predictions(tmp_path / "tta.pkl")
    assert len(plain) == len(flipped) == 11
    for one, other in zip(plain, flipped, strict=True):
        assert one["img_id"] == other["img_id"]
        assert set(one["pred_instances"]) >= {"bboxes", "scores", "labels"}
        assert not torch.equal(one["pred_instances"]["scores"], other["pred_instances"]["scores"])
    drawn = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert drawn == sorted(path.name for path in (toy_coco / "val2017").iterdir())


def test_killed_training_goes_on(toy_coco, run_tool, tmp_path):
    command = [
        *(sys.executable, "-u", str(TRAIN), str(NANO_CONFIG), "--work-dir", str(tmp_path)),
        *("--resume", *options(toy_coco, "train_cfg.max_epochs=3")),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as training:
        seen = []
        for line in training.stdout:
            seen.append(line)
            if "Epoch(train) [3][" in line:
                os.killpg(training.pid, signal.SIGKILL)
                break
    assert training.returncode == -signal.SIGKILL, "".join(seen[-30:])
    assert any("Nothing to resume" in line for line in seen)
    assert not (tmp_path / "epoch_3.pth").exists()
    (tmp_path / "last_checkpoint").write_text("")  # as if killed while it was being written
    result = run_tool(*command)
    assert f"Resuming from {tmp_path}/epoch_2.pth" in result.stdout
    assert "Epoch(train) [3][1/4]" in result.stdout
    assert "Epoch(train) [2][" not in result.stdout
    assert (tmp_path / "epoch_3.pth").exists()


def test_the_shipped_config_trains_on_toy_data(toy_coco, tmp_path):
    cfg = launch.load_config(
        str(ROOT / "configs/detection/retinanet_crossformer-s_fpn_1x_coco.py"),
        {"data_root": str(toy_coco), "train_dataloader.num_workers": 0},
        str(tmp_path),
    )
    cfg.train_dataloader.persistent_workers = False
    cfg.train_dataloader.dataset.pipeline[2].scale = (160, 96)
    cfg.train_dataloader.dataset.indices = 4
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=2)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=2)
    runner = launch.build_runner(cfg, "none", all_weights_needed=False)
    before = {n: p.detach().clone() for n, p in runner.model.named_parameters()}
    runner.train()
    for name, parameter in runner.model.named_parameters():
        assert parameter.isfinite().all() and not torch.equal(parameter, before[name]), name
    assert (tmp_path / "iter_2.pth").is_file()


@pytest.mark.parametrize(
    ("tool", "arguments", "named"),
    [
        (TRAIN, ["nowhere.py"], "config nowhere.py does not exist"),
        (TRAIN, [NANO_CONFIG, "--pretrained", "no.pth"], "--pretrained no.pth does not exist"),
        (TRAIN, [NANO_CONFIG, "--resume", "no.pth"], "--resume no.pth does not exist"),
        (TRAIN, [NANO_CONFIG, "--cfg-options", "data_root=/no"], "annotation file /no/annot"),
        (TRAIN, [NANO_CONFIG, "--work-dir", NANO_CONFIG], "is not a folder: give another --work-"),
        (TEST, [NANO_CONFIG, "no.pth"], "checkpoint no.pth does not exist"),
        (TEST, [NANO_CONFIG, TEST, "--eval", "mask"], "--eval mask: choose from"),
        (TEST, [NANO_CONFIG, TEST, "--out", "p.txt"], "--out p.txt must end with .pkl"),
        (TEST, [NANO_CONFIG, TEST, "--cfg-options", "data_root=/no"], "annotation file /no/"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(monkeypatch, tmp_path, tool, arguments, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        tool_main(monkeypatch, tool, *arguments)
    message = exit_info.value.code
    assert message.startswith("error: ") and named in message and "\n" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is refused without a GPU")
@pytest.mark.parametrize("tool", [TRAIN, TEST])
def test_mixed_precision_without_a_gpu_is_refused(monkeypatch, tmp_path, tool):
    checkpoint = [NANO_CONFIG] if tool is TEST else []
    with pytest.raises(SystemExit, match="error: --amp needs a GPU"):
        tool_main(monkeypatch, tool, NANO_CONFIG, *checkpoint, "--amp")


@pytest.mark.parametrize(
    ("launcher", "named"), [("pytorch", "RANK: dist_train.sh"), ("slurm", "PROCID: slurm_train.sh")]
)
def test_a_launcher_that_did_not_start_the_process_is_named(monkeypatch, launcher, named):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    cfg = launch.load_config(str(NANO_CONFIG))
    with pytest.raises(SystemExit, match=f"^error: --launcher {launcher} needs .*{named}"):
        launch.build_runner(cfg, launcher, all_weights_needed=False)


def test_a_config_that_cannot_be_read_is_named(monkeypatch, tmp_path):
    (tmp_path / "bad.py").write_text("model = dict(\n")
    with pytest.raises(SystemExit, match=r"error: config .*bad\.py cannot be read"):
        tool_main(monkeypatch, TRAIN, tmp_path / "bad.py")


def test_a_checkpoint_of_another_model_fails_the_test(trained, toy_coco, run_tool, tmp_path):
    result = run_tool(
        *(sys.executable, TEST, ROOT / "configs/detection/retinanet_crossformer-s_fpn_1x_coco.py"),
        *(trained / "epoch_1.pth", "--work-dir", tmp_path),
        *("--cfg-options", f"data_root={toy_coco}"),
        check=False,
    )
    assert result.returncode == 1
    last_line = result.stdout.strip().splitlines()[-1]
    assert "does not fit this model" in last_line and "another shape" in last_line


def test_data_root_moves_every_path():
    cfg = launch.load_config(str(NANO_CONFIG), {"data_root": "elsewhere/coco"})
    assert cfg.train_dataloader.dataset.data_root == "elsewhere/coco/"
    assert cfg.test_evaluator.ann_file == "elsewhere/coco/annotations/instances_val2017.json"
    assert "data/" not in cfg.pretty_text
    assert launch.move_paths({"a": ("x/b", ["x/c", 1])}, "x/", "y/") == {"a": ("y/b", ["y/c", 1])}


def test_slurm_without_a_gpu_sets_what_torch_reads(monkeypatch):
    slurm = dict(SLURM_PROCID="3", SLURM_NTASKS="4", SLURM_LOCALID="1")
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in {**slurm, "SLURM_NODELIST": "node[07-08,11],gpu3"}.items():
        monkeypatch.setenv(name, value)
    launch._adopt_slurm_environment()
    found = [os.environ[n] for n in ("MASTER_ADDR", "RANK", "WORLD_SIZE", "LOCAL_RANK")]
    assert found == ["node07", "3", "4", "1"]


@pytest.mark.parametrize(("gpus", "refused"), [(1, False), (2, True), (4, False)])
def test_slurm_may_show_each_task_its_own_gpu(monkeypatch, gpus, refused):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    with pytest.raises(SystemExit, match="no GPU") if refused else nullcontext():
        launch._check_own_gpu("slurm")


def options_applied(tool: Path, cfg: Config, **options: object) -> Config:
    """The config after a tool has written its command line into it."""
    names = ("pretrained", "amp", "auto_scale_lr", "resume", "out", "show_dir", "tta", "eval")
    args = Namespace(**{**dict.fromkeys(names), **options})
    runpy.run_path(str(tool))["apply_options"](cfg, args)
    return cfg


def test_resuming_nothing_keeps_the_weights_to_start_from(tmp_path):
    cfg = launch.load_config(str(NANO_CONFIG), {"load_from": "start.pth"}, str(tmp_path))
    options_applied(TRAIN, cfg, resume="auto")
    assert (cfg.load_from, cfg.resume) == ("start.pth", False)
    torch.save({}, tmp_path / "epoch_3.pth")
    options_applied(TRAIN, cfg, resume="auto")
    assert (cfg.load_from, cfg.resume) == (str(tmp_path / "epoch_3.pth"), True)


def test_the_config_of_a_resumed_training_can_be_tested(tmp_path):
    cfg = launch.load_config(str(NANO_CONFIG), {"resume": True}, str(tmp_path))
    assert options_applied(TEST, cfg, checkpoint=str(NANO_CONFIG)).resume is False


def test_unused_parameters_are_looked_for_where_the_config_says(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: None)
    cfg = launch.load_config(str(NANO_CONFIG), {"find_unused_parameters": True})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    launch._start_processes(cfg, "pytorch")
    assert cfg.model_wrapper_cfg.find_unused_parameters is True
