"""The doctor's findings, and when it says that training would start."""

import sys
from pathlib import Path

import pytest
from conftest import NANO_CONFIG, ROOT

from crossformer_mm import doctor
from crossformer_mm.doctor import DATA, Finding, examine, report, would_train


def texts(findings: list[Finding]) -> dict[str, str]:
    return {finding.topic: finding.text for finding in findings}


@pytest.mark.parametrize("library", DATA)
def test_one_data_set_is_enough(tmp_path, library):
    (tmp_path / DATA[library]).mkdir(parents=True)
    findings = examine(folder=tmp_path)
    assert would_train(findings)
    assert texts(findings)[library] == f"data in {DATA[library]}"
    others = [finding for finding in findings if finding.topic in set(DATA) - {library}]
    assert all("missing" in f.text and "--cfg-options data_root=DIR" in f.advice for f in others)


def test_without_data_training_would_not_start(tmp_path):
    findings = examine(folder=tmp_path)
    assert not would_train(findings)
    text = report(findings)
    assert text.endswith("Training would not start.")
    assert text.count("->") == len(DATA)


def test_the_attention_path_is_the_one_that_runs(tmp_path):
    import torch

    expected = "fused on cuda" if torch.cuda.is_available() else "sdpa on cpu"
    assert texts(examine(folder=tmp_path))["attention"] == expected


def test_operators_that_do_not_load(tmp_path, monkeypatch):
    def fail() -> None:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    (tmp_path / DATA["mmdet"]).mkdir(parents=True)
    monkeypatch.setattr(doctor, "_run_mmcv_operator", fail)
    findings = examine(folder=tmp_path)
    assert texts(findings)["mmcv ops"].startswith("ImportError: libcudart.so.12")
    assert not would_train(findings)


def test_two_families_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "1.0")
    findings = examine(folder=tmp_path)
    assert not would_train(findings)
    assert "remove all libraries of both families" in findings[-1].advice


def test_a_config_and_its_data(toy_coco, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = examine(str(NANO_CONFIG))
    assert not would_train(missing)
    assert "data/toy_coco/annotations" in texts(missing)["data"]
    present = examine(str(NANO_CONFIG), str(toy_coco))
    assert would_train(present)
    assert texts(present)["model"] == "can be built"


def test_a_config_that_cannot_be_used(tmp_path):
    findings = examine(str(tmp_path / "no.py"))
    assert texts(findings)["config"].endswith("no.py does not exist")
    config = tmp_path / "wrong.py"
    config.write_text(
        NANO_CONFIG.read_text()
        .replace('"retinanet_', f'"{NANO_CONFIG.parent}/retinanet_')
        .replace("embed_dims=32", "embed_dims=33")
    )
    findings = examine(str(config))
    assert "embed_dims" in texts(findings)["model"]
    assert not would_train(findings)


def test_a_machine_without_the_libraries(run_tool):
    # -S leaves the installed packages out.
    command = (sys.executable, "-S", "-m", "crossformer_mm.doctor")
    result = run_tool(*command, check=False, PYTHONPATH=str(ROOT))
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["python", "torch"]
    assert "pip install 'torch>=2.1'" in result.stdout
    assert "pip install --no-build-isolation 'crossformer_mm[onedl]'" in result.stdout
    assert "Traceback" not in result.stdout
    assert Path(lines[-1]).name == "Training would not start."
