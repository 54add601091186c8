"""The doctor's findings, and when it says that training would start."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT

from crossformer_mm.doctor import libraries
from crossformer_mm.doctor.examination import examine
from crossformer_mm.doctor.findings import Finding, report, would_train
from crossformer_mm.doctor.shipped_configs import CONFIGS

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


def test_two_families_at_once(empty_folder, monkeypatch):
    monkeypatch.setattr(libraries, "version", lambda name: "1.0")
    findings = examine()
    assert not would_train(findings)
    assert "remove all libraries of both families" in problems(findings)["family"].advice


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
