"""The doctor's findings, and when it says that training would start."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import NANO_CONFIG, ROOT
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from crossformer_mm.doctor import __main__ as command
from crossformer_mm.doctor import libraries, rehearsal
from crossformer_mm.doctor.examination import examine
from crossformer_mm.doctor.findings import Finding, report, would_train
from crossformer_mm.doctor.shipped_configs import CONFIGS
from crossformer_mm.flops import build_model
from crossformer_mm.launch import load_config

DATA = {
    "mmpretrain": ("data/imagenet", "classification"),
    "mmdet": ("data/coco", "detection"),
    "mmseg": ("data/ade/ADEChallengeData2016", "segmentation"),
}


def texts(findings: list[Finding]) -> dict[str, str]:
    return {finding.topic: finding.text for finding in findings}


def problems(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.topic: finding for finding in findings if finding.stops_training}


@pytest.fixture
def empty_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def import_fails(monkeypatch):
    """Make the doctor's import of one module fail."""

    def make(module: str, error: BaseException) -> None:
        def load(name: str) -> object:
            if name == module:
                raise error
            return import_module(name)

        monkeypatch.setattr(libraries, "import_module", load)

    return make


@pytest.mark.parametrize("library", DATA)
def test_one_data_set_is_enough(empty_folder, toy_data_roots, library):
    folder, task = DATA[library]
    (empty_folder / folder).parent.mkdir(parents=True)
    (empty_folder / folder).symlink_to(toy_data_roots[task])
    findings = examine()
    assert would_train(findings)
    assert texts(findings)[library] == f"data in {folder}/"
    assert set(problems(findings)) == DATA.keys() - {library}


def test_empty_folders_are_no_data(empty_folder):
    for folder, _ in DATA.values():
        (empty_folder / folder).mkdir(parents=True)
    findings = examine()
    assert not would_train(findings)
    assert "data/coco/annotations/instances_train2017.json" in texts(findings)["mmdet"]
    text = report(findings)
    assert text.endswith("Training would not start.")
    assert text.count("--cfg-options data_root=DIR") == len(CONFIGS)


def test_the_attention_path_is_the_one_that_runs(empty_folder):
    expected = "fused on cuda" if torch.cuda.is_available() else "sdpa on cpu"
    assert texts(examine())["attention"] == expected


@pytest.mark.parametrize(
    ("topic", "module", "error", "text"),
    [
        ("cv2", "cv2", ImportError("libGL.so.1: cannot open"), "ImportError: libGL.so.1: cannot"),
        ("mmengine", "mmengine", ImportError("no name x\nmore"), "ImportError: no name x"),
        ("mmcv", "mmcv", SystemExit(3), "ends the program with '3'"),
    ],
)
def test_a_library_that_cannot_be_imported(empty_folder, import_fails, topic, module, error, text):
    import_fails(module, error)
    findings = examine()
    (problem,) = problems(findings).values()
    assert problem.topic == topic and problem.text.startswith(text) and "\n" not in problem.text
    assert "torch" not in problem.advice and problem.advice
    assert "config" not in problem.advice


def test_operators_that_do_not_load(empty_folder, monkeypatch):
    def fail() -> None:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(libraries, "_suppress_boxes", fail)
    (problem,) = problems(examine()).values()
    assert problem.topic == "mmcv ops"
    assert problem.text.startswith("ImportError: libcudart.so.12")
    assert problem.advice.endswith(f"mmcv=={libraries.import_mmcv().text}")


def test_a_part_of_a_library_that_cannot_be_imported(empty_folder, import_fails, toy_coco):
    import_fails("mmdet.datasets", ImportError("numpy.core.multiarray failed to import"))
    for findings in (examine(), examine(str(NANO_CONFIG), str(toy_coco))):
        problem = problems(findings)["mmdet"]
        assert problem.text == "ImportError: numpy.core.multiarray failed to import"
        assert "in a new environment" in problem.advice
        assert not would_train(findings)


def test_two_families_at_once(empty_folder, monkeypatch):
    monkeypatch.setattr(libraries, "version", lambda name: "1.0")
    findings = examine()
    assert not would_train(findings)
    assert "remove all libraries of both families" in problems(findings)["family"].advice


def test_a_config_and_its_data(toy_coco, empty_folder):
    missing = examine(str(NANO_CONFIG))
    assert set(problems(missing)) == {"data"}
    assert "data/toy_coco/annotations" in texts(missing)["data"]
    present = examine(str(NANO_CONFIG), str(toy_coco))
    assert would_train(present)
    assert texts(present)["model"].startswith("RetinaNet of")
    assert [*empty_folder.iterdir()] == []


def test_the_data_root_of_no_config_is_refused(empty_folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["doctor", "--data-root", "elsewhere"])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert "--data-root elsewhere" in capsys.readouterr().err


CHANGES = [
    ("model = dict(backbone=dict(arch=dict(embed_dims=33)))", "model", "embed_dims"),
    ("model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='no.pth')))",)
    + ("weights", "no.pth does not exist"),
    ("load_from = 'no.pth'", "weights", "no.pth does not exist"),
    ("load_from = 'other.pth'", "weights", "does not fit this model"),
    ("optim_wrapper = dict(optimizer=dict(type='Adamm'))", "optimizer", "Adamm"),
    ("param_scheduler = dict(_delete_=True, type='NoLR')", "optimizer", "NoLR"),
    ("train_cfg = dict(type='NoLoop')", "loops", "NoLoop"),
    ("val_dataloader = dict(sampler=dict(type='NoSampler'))", "loops", "NoSampler"),
    ("train_dataloader = dict(dataset=dict(pipeline=[dict(type='NoTransform')]))",)
    + ("data sets", "NoTransform"),
    ("val_dataloader = dict(dataset=dict(type='NoData'))", "data sets", "NoData"),
    ("val_evaluator = dict(type='NoMetric')", "metrics", "NoMetric"),
    ("custom_hooks = [dict(type='NoHook', priority='LOW')]", "hooks", "NoHook"),
    ("visualizer = dict(vis_backends=[dict(type='NoBackend')])", "hooks", "NoBackend"),
    ("visualizer = dict(vis_backends=[dict(type='WandbVisBackend')])", "hooks", "wandb"),
    ("val_cfg = None", "config", "has no val_cfg"),
    ("raise SystemExit('bye')", "config", "ends the program with 'bye'"),
]


@pytest.mark.parametrize(("change", "topic", "text"), CHANGES, ids=[row[0] for row in CHANGES])
def test_what_training_would_fail_on(empty_folder, toy_coco, monkeypatch, change, topic, text):
    config = empty_folder / "changed.py"
    config.write_text(f"_base_ = '{NANO_CONFIG}'\n{change}\n")
    torch.save({"state_dict": {"other.weight": torch.zeros(2)}}, empty_folder / "other.pth")
    monkeypatch.setitem(sys.modules, "wandb", None)
    findings = examine(str(config), str(toy_coco))
    (problem,) = problems(findings).values()
    assert problem.topic == topic
    assert text in problem.text
    assert "config" in problem.advice or topic == "config"


def test_a_training_to_resume_is_compared(empty_folder, toy_coco):
    cfg = load_config(str(NANO_CONFIG))
    init_default_scope(cfg.default_scope)
    model = build_model(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).state_dict()
    state = dict(state_dict=model.state_dict(), message_hub={}, optimizer=optimizer)
    torch.save(state, empty_folder / "epoch_1.pth")
    config = empty_folder / "resumed.py"
    config.write_text(f"_base_ = '{NANO_CONFIG}'\nload_from = 'epoch_1.pth'\nresume = True\n")
    assert not problems(examine(str(config), str(toy_coco)))
    with config.open("a") as file:
        file.write("optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))\n")
    (problem,) = problems(examine(str(config), str(toy_coco))).values()
    assert (
        problem.topic == "weights"
        and "resume with the same frozen_stages and optim_wrapper" in problem.text
    )


def test_a_config_that_is_not_there_or_no_training(empty_folder):
    assert texts(examine("no.py"))["config"] == "config no.py does not exist"
    Path("bare.py").write_text("x = 1\n")
    findings = examine("bare.py")
    assert texts(findings)["config"].startswith("bare.py has no model, train_dataloader")
    assert not would_train(findings)


def run_doctor(run_tool, *options: object, path: Path = ROOT) -> tuple[int, list[str]]:
    words = (sys.executable, *options, "-m", "crossformer_mm.doctor")
    result = run_tool(*words, check=False, PYTHONPATH=f"{path}:{ROOT}")
    assert "Traceback" not in result.stdout
    return result.returncode, result.stdout.splitlines()


def test_a_machine_without_the_libraries(run_tool):
    # -S leaves the installed packages out.
    status, lines = run_doctor(run_tool, "-S")
    assert status == 1
    topics = [line.split()[0] for line in lines]
    assert topics == ["python", "numpy", "->", "family", "->", "Training"]
    assert "pip install 'torch>=2.1'" in lines[2]
    assert "pip install --no-build-isolation 'crossformer_mm[onedl]'" in lines[4]
    assert lines[-1] == "Training would not start."


@pytest.mark.parametrize("module", ["numpy", "torch"])
def test_a_broken_module(run_tool, tmp_path, module):
    (tmp_path / f"{module}.py").write_text("raise OSError('libcudart.so.12: cannot open')\n")
    status, lines = run_doctor(run_tool, path=tmp_path)
    assert status == 1
    number = next(i for i, line in enumerate(lines) if line.startswith(module))
    assert lines[number].endswith("OSError: libcudart.so.12: cannot open")
    assert f"-> pip install --force-reinstall --no-deps {module}==" in lines[number + 1]


def test_what_this_package_registers_is_known_to_the_doctor():
    """Run as a module, it leaves out the imports of the package itself."""
    registering = {
        file.stem
        for file in (ROOT / "crossformer_mm").glob("*.py")
        if ".register_module(" in file.read_text() and file.stem != "fsdp"  # has its own runner
    }
    assert {"layer_decay", "loss_check", "transforms"} <= registering
    assert {*registering, "models"} <= vars(rehearsal).keys()
