"""The benchmark: order, ratios, memory, files and errors. No test asks how fast anything is."""

import json
from itertools import groupby

import pytest
import torch
from conftest import CONFIGS, NANO_CONFIG, ROOT, SMALL_ARCH, tool_main
from mmengine.config import Config
from torch.nn.utils import parameters_to_vector

from crossformer_mm.analysis import benchmark
from crossformer_mm.analysis.benchmark import Result, format_table, measure
from crossformer_mm.analysis.variants import SWIN, Case, Step, Variant
from crossformer_mm.models import ATTN_BACKENDS

BENCHMARK = ROOT / "tools/benchmark.py"
CLASSIFIER = CONFIGS / "classification/crossformer-nano_toy-imagenet.py"
WHOLE_MODELS = (
    CLASSIFIER,
    NANO_CONFIG,
    CONFIGS / "detection/mask-rcnn_crossformer-nano_fpn_toy-coco.py",
    CONFIGS / "segmentation/upernet_crossformer-nano_toy-ade.py",
)
AUTO, EAGER = Variant("auto"), Variant("eager")
TINY = dict(backbone=dict(arch=SMALL_ARCH), shape=(48, 64), repeat=2)


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    """One run of a step is enough for a round."""
    monkeypatch.setattr(benchmark, "ROUND_SECONDS", 1e-6)


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
    """The names of the classes whose modules would have been compiled."""
    names = []
    note = lambda self, **_: names.append(type(self).__name__)  # noqa: E731
    monkeypatch.setattr(torch.nn.Module, "compile", note)
    return names


def test_every_variant_is_timed_once_before_any_is_timed_again(monkeypatch):
    calls = []
    step_of = lambda case, variant: lambda: calls.append(variant.name)  # noqa: E731
    monkeypatch.setattr(benchmark, "Step", step_of)
    results = measure(Case(tuple(map(Variant, "abc")), repeat=2), with_memory=False)
    assert [name for name, _ in groupby(calls)] == [*"abc" * 3]
    assert [len(result.rounds) for result in results] == [2, 2, 2]


def test_a_variant_that_fails_is_named_and_does_not_stop_the_others():
    triton, eager = measure(Case((Variant("triton"), EAGER), **TINY), with_memory=False)
    assert "NVIDIA GPU" in triton.problem and not triton.rounds
    assert len(eager.rounds) == 2 and eager.problem is None
    assert triton.problem in format_table([triton, eager]).splitlines()[-1]


def test_ratios_compare_what_is_run_in_the_same_way(compiled):
    variants = [Variant(name, run) for run in ("eager", "compile") for name in ("auto", "eager")]
    results = {r.variant: r for r in measure(Case(tuple(variants), **TINY), with_memory=False)}
    assert len(compiled) == 2
    for variant, result in results.items():
        pairs = zip(results[Variant("eager", variant.run)].rounds, result.rounds, strict=True)
        assert result.ratios == [a.median / b.median for a, b in pairs]
        row = result.as_dict()
        low, median, high = row["ms"]
        assert low <= median <= high and row["images_per_s"] == pytest.approx(1000 / median)


def test_memory_grows_with_the_batch():
    case = dict(TINY, shape=(256, 256), repeat=1)
    (one,), (four,) = (measure(Case((AUTO,), batch=n, **case)) for n in (1, 4))
    assert 0 < one.peak_mb < four.peak_mb


@pytest.mark.parametrize("mode", ["inference", "train"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_step_trains_or_leaves_the_weights_alone(mode, dtype):
    step = Step(Case((), mode=mode, dtype=dtype, **TINY), AUTO)
    before = parameters_to_vector(step.model.parameters())
    step()
    changed = not torch.equal(before, parameters_to_vector(step.model.parameters()))
    assert changed == (mode == "train") == step.model.training


@pytest.mark.parametrize("config", WHOLE_MODELS, ids=lambda config: config.stem)
def test_steps_of_whole_models_with_any_number_of_channels(compiled, config):
    cfg = Config.fromfile(config)
    cfg.model.backbone.in_channels = 4
    step = Step(Case((), cfg=cfg, shape=(64, 64), batch=2), Variant("sdpa", "compile"))
    step()
    assert compiled == ["CrossFormer"] and step.inputs[0].shape == (2, 4, 64, 64)


def test_all_backends_get_the_same_weights():
    first, *others = [Step(Case((), **TINY), Variant(name)).model for name in ATTN_BACKENDS]
    for other in others:
        torch.testing.assert_close(other.state_dict(), first.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("library", SWIN)
def test_swin_of_the_libraries(library):
    pytest.importorskip(library)
    step = Step(Case((), shape=(64, 96)), Variant(library))
    with torch.no_grad():
        maps = step.model(*step.inputs)
    assert [m.numel() for m in maps] == [16 * 24 * 96 // 2**stage for stage in range(4)]
    step(step.make_inputs((32, 32), 1))


def test_the_tool_prints_ratios_and_writes_json(tmp_path, capsys):
    options = ("--shape", 32, 48, "--batch", 2, "--repeat", 3, "--device", "cpu", "--threads", 1)
    tool_main(BENCHMARK, "--config", CLASSIFIER, *options, "--out", tmp_path / "out")
    name, heading, *rows = capsys.readouterr().out.strip().splitlines()
    assert name.startswith("crossformer-nano_toy-imagenet 32x48 b2 inference fp32 cpu threads=1")
    assert "median ms" in heading and "vs eager" in heading
    assert [row.split()[0] for row in rows] == ["auto", "eager"]
    assert "1.00   1.00 - 1.00" in rows[1]
    (file,) = (tmp_path / "out").iterdir()
    report = json.loads(file.read_text())
    assert file.name == "benchmark.json" and "PyTorch" in report["env"]
    for result in report["results"]:
        assert len(result["rounds_ms"]) == 3 and result["problem"] is None
        assert result["peak_mb"] > 0


def test_a_suite_is_measured_case_after_case(monkeypatch, tmp_path):
    cases = []

    def note(case: Case, with_memory: bool) -> list[Result]:
        cases.append(case)
        return [Result(case, variant) for variant in case.variants]

    monkeypatch.setattr(benchmark, "measure", note)
    tool_main(BENCHMARK, "--suite", "cpu", "--against", "mmdet", "--out", tmp_path)
    assert len(cases) == 6 and {case.device for case in cases} == {"cpu"}
    assert {case.variants for case in cases} == {(AUTO, EAGER, Variant("mmdet"))}
    assert len(json.loads((tmp_path / "benchmark.json").read_text())["results"]) == 18


def test_a_config_with_another_backbone_has_one_variant(capsys):
    options = ("--cfg-options", "model.backbone.type=ResNet", "--shape", 32)
    with pytest.raises(SystemExit, match="1 of 1 variants failed"):  # ResNet has no 'arch'
        tool_main(BENCHMARK, "--config", CLASSIFIER, *options, "--no-memory")
    assert "\nResNet " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--shape 31", "--shape 31.*at least 32"),
        ("--shape 64 64 64", "--shape 64 64 64.*height and width"),
        ("--batch 0", "--batch 0.*at least 1"),
        ("--dtype fp16", "--dtype fp16.*fp32 or bf16"),
        ("--config nope.py", "nope.py does not exist"),
        (f"--config {CLASSIFIER} --with-cp", "--with-cp.*--cfg-options"),
        (f"--config {CLASSIFIER} --mode train", "--mode train.*--arch"),
        (f"--config {CONFIGS / 'detection/_base_/default_runtime.py'}", "no model"),
        ("--cfg-options a=1", "--cfg-options needs --config"),
        (f"--out {__file__}", "--out.*must be a folder"),
        ("--device cuda", "--device cuda: no GPU"),
        ("--suite gpu", "--device cuda: no GPU"),
        ("--against timm", "--against timm: timm is not installed"),
    ],
)
def test_bad_arguments_are_named_in_one_line(monkeypatch, options, named):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("crossformer_mm.analysis.variants.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=f"^error: .*{named}.*$"):
        tool_main(BENCHMARK, "--device", "cpu", *options.split())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["inference", "train"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(mode, dtype):
    for result in measure(Case((AUTO, EAGER), mode=mode, dtype=dtype, device="cuda", **TINY)):
        assert result.problem is None and len(result.rounds) == 2 and result.peak_mb > 0
