"""The benchmark: order, ratios, memory, files and errors. No test asks how fast anything is."""

import json
from collections.abc import Callable
from itertools import groupby

import pytest
import torch
from conftest import CONFIGS, NANO_CONFIG, ROOT, SMALL_ARCH, tool_main
from mmengine.config import Config
from torch.nn.utils import parameters_to_vector

from crossformer_mm.analysis import benchmark, correctness, flex, floor
from crossformer_mm.analysis.benchmark import Result, format_markdown, format_table, measure
from crossformer_mm.analysis.variants import DEPLOYED, DTYPES, SWIN, Case, Step, Variant
from crossformer_mm.deploy import onnx
from crossformer_mm.engine.config import find_preprocessor, load_config
from crossformer_mm.models import ATTN_BACKENDS
from crossformer_mm.models.attention import eager, sdpa
from crossformer_mm.models.grouping import GroupPlan
from crossformer_mm.utils import collect_env
from crossformer_mm.utils.errors import ExportError

BENCHMARK = ROOT / "tools/benchmark.py"
CLASSIFIER = CONFIGS / "classification/crossformer-nano_toy-imagenet.py"
WHOLE_MODELS = (
    CLASSIFIER,
    NANO_CONFIG,
    CONFIGS / "detection/mask-rcnn_crossformer-nano_fpn_toy-coco.py",
    CONFIGS / "segmentation/upernet_crossformer-nano_toy-ade.py",
)
AUTO, EAGER = Variant("auto"), Variant("eager")
BACKBONES = ("auto", "eager", "mmdet")
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


def test_ratios_compare_with_the_eager_backend_as_pytorch_runs_it(compiled, monkeypatch):
    monkeypatch.setattr(benchmark, "has_bf16", lambda: True)
    runs = ("eager", "compile", "bf16")
    variants = [Variant(name, run) for run in runs for name in ("auto", "eager")]
    results = {r.variant: r for r in measure(Case(tuple(variants), **TINY), with_memory=False)}
    assert len(compiled) == 2
    for result in results.values():
        pairs = zip(results[EAGER].rounds, result.rounds, strict=True)
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
    settings = find_preprocessor(cfg)
    settings.update(mean=None, std=None, **{name: False for name in settings if "to_rgb" in name})
    step = Step(Case((), cfg=cfg, shape=(64, 64), batch=2), Variant("sdpa", "compile"))
    found = step()  # images in, predictions out
    assert (
        compiled == ["CrossFormer"]
        and [x.shape for x in step.inputs["inputs"]] == [(4, 64, 64)] * 2
    )
    predicted = {"mmdet": "pred_instances", "mmseg": "pred_sem_seg", "mmpretrain": "pred_score"}
    assert all(predicted[cfg.default_scope] in sample for sample in found)


@pytest.mark.parametrize("config", WHOLE_MODELS[1:3], ids=lambda config: config.stem)
def test_detectors_in_bf16(config):
    case = Case((), cfg=Config.fromfile(config), shape=(64, 64))
    assert benchmark.count_boxes(Step(case, Variant("auto", "bf16"))()) is not None


@pytest.fixture
def exporting():
    """Skips where exported models cannot be written or run."""
    try:
        onnx.check_installed("openvino", "nncf")
    except ExportError as missing:
        pytest.skip(str(missing))


def test_exported_backbones_are_timed_beside_pytorch(exporting):
    arch = dict(SMALL_ARCH, depths=(1, 1, 1, 1))
    runs = ("onnxruntime", "openvino", "openvino-int8")
    variants = (EAGER, *[Variant("CrossFormer", run) for run in runs])
    results = measure(Case(variants, **dict(TINY, backbone=dict(arch=arch))))
    for result in results:
        assert result.problem is None and len(result.ratios) == 2, result.problem
        assert (result.peak_mb is None) == (result.variant.run in DEPLOYED)


def test_an_exported_detector_finds_what_pytorch_finds(exporting):
    options = {"model.test_cfg.score_thr": 0.6}  # random weights are sure of nothing
    cfg, variants = (
        load_config(str(NANO_CONFIG), options),
        (AUTO, Variant("CrossFormer", "openvino")),
    )
    results = measure(Case(variants, cfg=cfg, shape=(64, 64), repeat=1), with_memory=False)
    assert [result.problem for result in results] == [None, None]
    assert results[0].boxes == results[1].boxes > 0
    (line,) = benchmark.describe_boxes(results)
    assert line == "boxes found: auto eager {0}, CrossFormer openvino {0}".format(results[0].boxes)


def test_bf16_needs_a_processor_that_has_it(monkeypatch):
    monkeypatch.setattr(benchmark, "has_bf16", lambda: False)
    eager, half = measure(Case((EAGER, Variant("eager", "bf16")), **TINY), with_memory=False)
    assert eager.problem is None and "no instructions for bfloat16" in half.problem


def test_the_floor_is_work_over_speed(monkeypatch):
    products, values = floor.count(Case((), batch=2))
    assert values == 2 * 22 * (602_112 + 301_056 + 451_584 + 75_264)
    assert products / 2e9 == pytest.approx(4.9, abs=0.05)
    _, values = floor.count(Case((), backbone=dict(arch=SMALL_ARCH), shape=(33, 64)))
    assert values == 22 * (9 * 16 * 16 + 5 * 8 * 32 + 2 * 3 * 4 * 64 + 2 * 2 * 128)
    monkeypatch.setattr(floor, "count", lambda case: (5 * 10**9, 10**7))
    rates = (dict(fp32=100e9, bf16=400e9), 20e9)
    monkeypatch.setattr(floor, "measure_rates", lambda threads: rates)
    assert floor.describe(Case(())) == [
        "floor of CrossFormer, 10.0 GFLOP: "
        "fp32 100.0 ms at 100 GFLOP/s, 2.0 ms for 40 MB at 20.0 GB/s; "
        "bf16 25.0 ms at 400 GFLOP/s, 1.0 ms for 20 MB at 20.0 GB/s"
    ]
    assert floor.describe(Case((), mode="train")) == []


def test_the_speed_of_products_and_copies(monkeypatch):
    monkeypatch.setattr(floor, "SIDE", 32)
    monkeypatch.setattr(floor, "COPIED", 4096)
    operations, bandwidth = floor.measure_rates.__wrapped__(1)
    assert bandwidth > 0 and "fp32" in operations and min(operations.values()) > 0


def test_the_processor_is_named(monkeypatch):
    monkeypatch.setattr(collect_env, "FEATURES", ("no_such_feature",))
    assert collect_env.describe_processor().endswith(" ()")


def test_all_backends_get_the_same_weights():
    first, *others = [Step(Case((), **TINY), Variant(name)).model for name in ATTN_BACKENDS]
    for other in others:
        torch.testing.assert_close(other.state_dict(), first.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("library", SWIN)
def test_swin_of_the_libraries(library):
    pytest.importorskip(library)
    step = Step(Case((), shape=(64, 96)), Variant(library))
    with torch.no_grad():
        maps = step.model(step.inputs)
    assert [m.numel() for m in maps] == [16 * 24 * 96 // 2**stage for stage in range(4)]
    step(step.make_inputs((32, 32), 1))


def test_the_tool_prints_ratios_and_writes_json(tmp_path, capsys):
    options = ("--shape", 32, 48, "--batch", 2, "--repeat", 3, "--device", "cpu", "--threads", 1)
    tool_main(BENCHMARK, "--config", CLASSIFIER, *options, "--out", tmp_path / "out")
    head, printed = capsys.readouterr().out.strip().split("\n\n")
    name, heading, *rows = printed.splitlines()
    assert head.startswith("PyTorch: ") and "\nProcessor: " in head
    assert name.startswith("crossformer-nano_toy-imagenet 32x48 b2 inference fp32 cpu threads=1")
    assert "median ms" in heading and "vs eager" in heading
    assert [row.split()[0] for row in rows] == ["auto", "eager"]
    assert "1.00   1.00 - 1.00" in rows[1]
    file, table = sorted((tmp_path / "out").iterdir())
    report = json.loads(file.read_text())
    assert file.name == "benchmark.json" and "PyTorch" in report["env"]
    for result in report["results"]:
        assert len(result["rounds_ms"]) == 3 and result["problem"] is None
        assert result["peak_mb"] > 0
    heading, _, *lines = table.read_text().splitlines()
    assert table.name == "benchmark.md" and f"- PyTorch: {torch.__version__}" in lines
    assert [f"- {line}" for line in head.splitlines()] == lines[-len(head.splitlines()) :]
    for line, row in zip(lines, rows, strict=False):  # the same cells in both
        assert line.count("|") == heading.count("|")
        assert line.replace("|", " ").split() == [*name.split(), *row.split()]


@pytest.fixture
def not_measured(monkeypatch) -> list[Case]:
    """The cases that would have been measured."""
    cases = []

    def note(case: Case, with_memory: bool) -> list[Result]:
        cases.append(case)
        return [Result(case, variant) for variant in case.variants]

    monkeypatch.setattr(benchmark, "measure", note)
    monkeypatch.setattr(floor, "describe", lambda case: ["the floor"] * (case.mode == "inference"))
    monkeypatch.setattr(onnx, "check_installed", lambda *more: None)
    return cases


def test_a_suite_is_measured_case_after_case(not_measured, tmp_path):
    tool_main(BENCHMARK, "--suite", "cpu", "--out", tmp_path)
    assert len(not_measured) == 5 and {case.device for case in not_measured} == {"cpu"}
    for case in not_measured[:2]:
        in_pytorch = [Variant(name, run) for run in ("eager", "bf16") for name in BACKBONES]
        exported = [Variant(name, run) for name in ("CrossFormer", "mmdet") for run in DEPLOYED]
        assert case.variants == (*in_pytorch, *exported)
    assert {case.variants for case in not_measured[2:]} == {(AUTO, EAGER)}
    assert len(json.loads((tmp_path / "benchmark.json").read_text())["results"]) == 34
    assert (tmp_path / "benchmark.md").read_text().count(", the floor\n") == 2


def test_whole_detectors_are_one_table(not_measured, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    tool_main(BENCHMARK, "--suite", "detectors", "--out", tmp_path)
    assert len({str(case) for case in not_measured}) == len(not_measured) == 6
    names = [case.variants[0].name for case in not_measured]
    assert names == ["auto", "auto", "SwinTransformer"] * 2
    for case in not_measured:
        in_pytorch = [v for v in case.variants if v.run not in DEPLOYED]
        assert case.baseline in in_pytorch
        assert [v.run for v in case.variants if v.run in DEPLOYED] == [*DEPLOYED]
        rcnn = case.cfg.model.test_cfg.get("rcnn", case.cfg.model.test_cfg)
        assert rcnn.score_thr != 0.05
    table = (tmp_path / "benchmark.md").read_text()
    assert table.count("| variant |") == 1 and "lda_mode=adaptive_interval" in table


def test_what_failed_is_below_the_table_for_the_docs():
    results = [Result(Case((), **TINY), AUTO, problem=problem) for problem in (None, "no memory")]
    *table, _, note, failed = format_markdown(results, ["a GPU"]).splitlines()
    assert len(table) == 4 and {line.count("|") for line in table} == {10}
    assert note == "- a GPU" and failed == f"- {results[0].case}, auto (eager): no memory"


@pytest.fixture
def checks_on_cpu(monkeypatch) -> Callable:
    """The comparison with the formula, on small maps and on the CPU whatever is asked for."""
    check = correctness.check_attention
    on_cpu = lambda names, device="cpu": check(names, "cpu")  # noqa: E731
    plans = (GroupPlan(4, 4, 4, 4, 1), GroupPlan(9, 10, 4, 4, 2))
    monkeypatch.setattr(correctness, "PLANS", plans)
    monkeypatch.setattr(correctness, "check_attention", on_cpu)
    return on_cpu


def multiply_wrongly(monkeypatch, factor: float) -> None:
    wrong = lambda *args: factor * eager.attend(*args)  # noqa: E731
    monkeypatch.setattr(sdpa, "attend", wrong)


def test_what_a_backend_computes_is_compared_with_the_formula(checks_on_cpu, monkeypatch):
    right = checks_on_cpu(("sdpa", "chunked", "eager"))
    assert [check.dtype for check in right] == [dtype for dtype in DTYPES for _ in range(3)]
    assert all(check.verdict == "right" and check.error > 0 for check in right)
    for name in ("triton", "flex"):
        assert all("GPU" in check.verdict for check in checks_on_cpu([name]))
    for factor in (1.1, float("nan")):
        multiply_wrongly(monkeypatch, factor)
        assert {check.verdict for check in checks_on_cpu(["sdpa"])} == {"wrong"}


@pytest.fixture
def as_if_on_a_gpu(monkeypatch, checks_on_cpu, not_measured) -> list[Case]:
    """The cases that would have been measured."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    env = {"GPU 0": "Some GPU", "PyTorch": "2", "GCC": "1"}
    monkeypatch.setattr("crossformer_mm.utils.collect_env.collect_env", lambda: env)
    return not_measured


def test_the_suite_for_gpus_checks_first(as_if_on_a_gpu, tmp_path, capsys):
    tool_main(BENCHMARK, "--suite", "gpu", "--out", tmp_path)
    head, (first, *_) = (text.splitlines() for text in capsys.readouterr().out.split("\n\n")[:2])
    assert head == ["GPU 0: Some GPU", "PyTorch: 2"]
    assert first.startswith("sdpa fp32: error ") and first.endswith("e-07, right")
    names = ["auto", "eager", "triton", "flex"]
    for case in as_if_on_a_gpu:
        assert list(dict.fromkeys(variant.name for variant in case.variants)) == names
    text = (tmp_path / "benchmark.md").read_text()
    assert f"\n\n- GPU 0: Some GPU\n- PyTorch: 2\n- {first}\n" in text


def test_what_is_wrong_is_not_timed(as_if_on_a_gpu, monkeypatch):
    multiply_wrongly(monkeypatch, 1.1)
    with pytest.raises(SystemExit, match="^error: nothing was timed.*formula's: sdpa in fp32, "):
        tool_main(BENCHMARK, "--suite", "gpu")
    assert not as_if_on_a_gpu


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_has_the_same_bias_and_groups(monkeypatch):
    pytest.importorskip("torch.nn.attention.flex_attention")
    torch.manual_seed(0)
    for plan in (GroupPlan(8, 12, 4, 4, 1), GroupPlan(9, 10, 4, 3, 2)):  # the second one padded
        qkv, table = torch.randn(2, *plan[:2], 96), torch.randn(7, 2 * plan.group_width - 1, 2)
        found, expected = (module.attend(qkv, table, plan, 2) for module in (flex, eager))
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, eager.attend(qkv, table.flip(0), plan, 2), atol=0.1)
    monkeypatch.setattr(flex, "attend", eager.attend)
    models = [Step(Case((), **TINY), variant).model for variant in (Variant("flex"), EAGER)]
    with torch.no_grad():
        found, expected = (model(torch.ones(1, 3, 48, 64)) for model in models)
    torch.testing.assert_close(found, expected)


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
        ("--attn-backend flex", "--attn-backend flex needs a GPU"),
        ("--against timm", "--against timm: timm is not installed"),
        ("--run bf16 --mode train", "--run bf16 is for --device cpu, inference"),
        ("--run openvino --dtype bf16", "--run openvino is for .*--dtype fp32"),
        ("--run openvino-int8", "openvino, nncf not installed: pip install"),
        ("--config nolib::a/b.py", "nolib::a/b.py needs nolib, which is not installed"),
        ("--config mmdet::no/b.py", "mmdet::no/b.py"),
    ],
)
def test_bad_arguments_are_named_in_one_line(monkeypatch, options, named):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("crossformer_mm.analysis.variants.find_spec", lambda name: None)
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=f"^error: .*{named}.*$"):
        tool_main(BENCHMARK, "--device", "cpu", *options.split())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["inference", "train"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(mode, dtype):
    for result in measure(Case((AUTO, EAGER), mode=mode, dtype=dtype, device="cuda", **TINY)):
        assert result.problem is None and len(result.rounds) == 2 and result.peak_mb > 0
