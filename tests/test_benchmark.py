"""The benchmark: order, statistics, memory, files and errors. No test asks how fast anything is."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, NANO_CONFIG, ROOT, tool_main

from crossformer_mm.benchmark import models, peak_memory
from crossformer_mm.benchmark.attention_memory import format_lines, measure_attention
from crossformer_mm.benchmark.case import BASELINE, DEFAULT_PATH, Case, Contender, own_contenders
from crossformer_mm.benchmark.measure import measure
from crossformer_mm.benchmark.options import OneLineParser, add_arguments
from crossformer_mm.benchmark.peak_memory import MemoryUnknownError, peak_in_child
from crossformer_mm.benchmark.report import format_table
from crossformer_mm.benchmark.suites import SUITES, read_suite
from crossformer_mm.benchmark.timing import time_in_turn
from crossformer_mm.benchmark.workload import GraphReplay, Workload, prepare_step, prepare_warm_step
from crossformer_mm.models import ATTENTION_PATHS

BENCHMARK = ROOT / "tools/benchmark.py"
CLASSIFIER = CONFIGS / "classification/crossformer-nano_toy-imagenet.py"
TINY = dict(
    embed_dims=16,
    depths=(1, 2, 1, 1),
    num_heads=(1, 1, 2, 2),
    group_size=4,
    interval=(4, 2, 1, 1),
)
FAST = ("--device", "cpu", "--repeat", 2, "--warmup", 1, "--no-memory")
TINY_OPTIONS = ("--arch", str(TINY), "--shape", 32, 48, *FAST)
COMPARED = list(dict.fromkeys((DEFAULT_PATH, BASELINE)))
PLAIN = Contender(BASELINE)
OTHER = Contender("other")
MEGABYTE = 2**20


class FakeClock:
    """A clock that only goes on when a step says how long it takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def step(self, *durations: float):
        """A step that takes the durations, one after the other."""
        remaining = iter(durations)

        def run() -> None:
            self.now += next(remaining)

        return run


def prepare_allocation(case: Case, contender: Contender):
    """A contender whose step takes 64 MB, and 16 MB if it is not the plain one."""
    size = 64 if contender == PLAIN else 16
    torch.ones(1, dtype=torch.uint8)  # loads code, which counts too
    return lambda: torch.ones(size * MEGABYTE, dtype=torch.uint8)


def test_every_contender_runs_once_before_any_runs_again():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = time_in_turn(steps, repeat=2, warmup=1, synchronize=lambda: calls.append("|"))
    assert "".join(calls) == "|a||b||c|" * 3
    assert [len(timings.seconds[name]) for name in "abc"] == [2, 2, 2]


def test_a_step_that_fails_is_named_and_does_not_stop_the_others():
    clock = FakeClock()
    steps = {"good": clock.step(1, 2, 3), "bad": iter([]).__next__, "late": clock.step(1, 1)}
    timings = time_in_turn(steps, repeat=2, warmup=1, clock=clock)
    assert timings.seconds == {"good": [2, 3]}
    assert timings.failures == {"bad": "StopIteration", "late": "StopIteration"}
    assert list(steps) == ["good"]


def test_medians_and_ratios():
    clock = FakeClock()
    steps = {OTHER: clock.step(9, 1, 2, 6), PLAIN: clock.step(9, 5, 4, 4)}
    case = Case((OTHER, PLAIN), batch=6, repeat=3, warmup=1)
    other, plain = measure(
        case, with_memory=False, prepare=lambda case, contender: steps[contender], clock=clock
    )
    assert (other.seconds, other.median) == ([1, 2, 6], 2)
    assert other.speed_ratios == [5 / 1, 4 / 2, 4 / 6]
    assert (other.speed_vs_plain, plain.speed_vs_plain) == (2, 1)
    row = other.as_row()
    assert row["images_per_s"] == 3
    times = [row[f"{name}_ms"] for name in ("min", "q1", "median", "q3", "max")]
    assert times == [1000, 1500, 2000, 4000, 6000]
    assert (row["speed_q1"], row["speed_q3"]) == pytest.approx((4 / 3, 3.5))
    assert other.memory_vs_plain is None
    table = format_table([other, plain])
    assert "2000.00  1500.00 - 4000.00" in table and "2.00  1.33 - 3.50" in table


def test_ratios_compare_what_is_run_in_the_same_way():
    contenders = own_contenders(None, ["eager", "compile"])
    assert contenders == tuple(
        Contender(path, run) for run in ("eager", "compile") for path in COMPARED
    )
    clock = FakeClock()
    durations = {contender: index + 1 for index, contender in enumerate(contenders)}
    results = measure(
        Case(contenders, repeat=1, warmup=0),
        with_memory=False,
        prepare=lambda case, contender: clock.step(durations[contender]),
        clock=clock,
    )
    for result in results:
        baseline = durations[Contender(BASELINE, result.contender.run)]
        assert result.speed_vs_plain == baseline / durations[result.contender]


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_memory_is_measured_in_a_process_per_contender():
    case = Case((OTHER, PLAIN), repeat=1, warmup=0)
    other, plain = measure(
        case, prepare=lambda *_: lambda: None, prepare_in_child=prepare_allocation
    )
    assert other.peak_mb == pytest.approx(16, abs=3)
    assert plain.peak_mb == pytest.approx(64, abs=3)
    assert other.memory_vs_plain == other.peak_mb / plain.peak_mb
    with pytest.raises(MemoryUnknownError, match="killed"):
        peak_in_child(os._exit, 9)


def test_without_proc_memory_is_unknown_and_the_result_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(peak_memory, "_PROC", tmp_path)
    case = Case((PLAIN,), repeat=1, warmup=0)
    (result,) = measure(case, prepare=lambda *_: lambda: None)
    assert result.seconds and result.peak_mb is None
    assert "/proc/self/status" in result.problem


def test_a_peak_that_an_earlier_one_hides_is_unknown(monkeypatch, tmp_path):
    (tmp_path / "status").write_text("VmHWM:\t  900000 kB\nVmRSS:\t  100000 kB\n")
    monkeypatch.setattr(peak_memory, "_PROC", tmp_path)
    with pytest.raises(MemoryUnknownError, match="warm-up took more"):
        peak_memory._measure_growth(lambda: lambda: None, ())


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_memory_of_attention_grows_with_the_area():
    case = Case((Contender(DEFAULT_PATH),), backbone=dict(arch="small"))
    (small,), (large,) = measure_attention(case, sides=(256, 512), lda_modes=("fixed_group",))
    assert 2 < large.peak_mb / small.peak_mb < 8
    line = format_lines([large])
    assert line.split()[:5] == ["512", "x", "512", "16384", DEFAULT_PATH]
    assert f"{large.peak_mb:.1f}" in line


@pytest.mark.parametrize("mode", ["inference", "train"])
@pytest.mark.parametrize("path", COMPARED)
def test_steps_of_the_backbone(mode, path):
    case = Case((), backbone=dict(arch=TINY), mode=mode, shape=(32, 48), batch=2, dtype="bf16")
    step = prepare_step(case, Contender(path))
    model = step.func.model
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step()
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert any(changed) == (mode == "train") == model.training
    prepare_warm_step(case, Contender(path))()


@pytest.mark.parametrize("mode", ["inference", "train"])
@pytest.mark.parametrize(
    "config",
    [
        CLASSIFIER,
        NANO_CONFIG,
        CONFIGS / "detection/mask-rcnn_crossformer-nano_fpn_toy-coco.py",
        CONFIGS / "segmentation/upernet_crossformer-nano_toy-ade.py",
    ],
    ids=lambda config: config.stem,
)
def test_steps_of_whole_models(monkeypatch, config, mode):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda m, **_: compiled.append(type(m).__name__) or m)
    case = Case((), config=str(config), mode=mode, shape=(64, 64), batch=2)
    prepare_step(case, Contender(BASELINE, "compile"))()
    assert compiled == ["CrossFormer"]


def test_all_paths_get_the_same_weights():
    case = Case((), backbone=dict(arch=TINY))
    first, *others = [Workload(case, Contender(path)).model for path in ATTENTION_PATHS]
    for other in others:
        for a, b in zip(first.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("library", ["mmdet", "mmpretrain"])
def test_swin_of_the_libraries(library):
    pytest.importorskip(library)
    case = Case((), shape=(224, 256))
    with torch.no_grad():
        maps = prepare_step(case, Contender(library))()
    assert [tuple(m.shape[2:]) for m in maps] == [(56, 64), (28, 32), (14, 16), (7, 8)]


def test_the_tool_writes_a_table_csv_and_json(monkeypatch, tmp_path, capsys):
    def fail_to_build(case):
        raise RuntimeError("no weights today")

    monkeypatch.setattr(models, "find_spec", lambda name: None if name == "timm" else name)
    monkeypatch.setitem(models.SWIN_BUILDERS, "mmdet", fail_to_build)
    out = tmp_path / "out"
    tool_main(monkeypatch, BENCHMARK, *TINY_OPTIONS, "--against", "mmdet", "timm", "--out", out)
    printed = capsys.readouterr().out
    assert "mmdet (eager): RuntimeError: no weights today" in printed
    assert "timm (eager): ModuleNotFoundError: timm is not installed" in printed
    assert "timed: the forward pass of the backbone" in printed
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [row["contender"] for row in rows] == [*COMPARED, "mmdet", "timm"]
    assert all(float(row["median_ms"]) > 0 and row["height"] == "32" for row in rows[:-2])
    report = json.loads((out / "results.json").read_text())
    assert {"date", "command", "machine", "versions", "git", "results"} == set(report)
    assert {"cpu", "gpu", "cores", "threads"} <= set(report["machine"])
    assert {"torch", "numpy"} <= set(report["versions"])
    assert report["git"] is None or {"revision", "dirty"} == set(report["git"])
    assert [len(result["seconds"]) for result in report["results"]] == [2] * len(COMPARED) + [0, 0]
    assert sorted(file.name for file in out.iterdir()) == ["results.csv", "results.json"]


def test_a_suite_goes_on_after_a_case_that_fails(monkeypatch, tmp_path, capsys):
    suite = tmp_path / "suite.txt"
    suite.write_text("--batch none  # wrong\n\n--arch nope\n--batch 3 --against\n")
    with pytest.raises(SystemExit, match="2 of 3 cases failed"):
        tool_main(
            monkeypatch, BENCHMARK, *TINY_OPTIONS, "--suite", suite, "--out", tmp_path / "out"
        )
    printed = capsys.readouterr().out
    assert "--batch none\nfailed: error: argument --batch: 'none'" in printed
    assert "unknown arch 'nope'" in printed
    rows = list(csv.DictReader((tmp_path / "out/results.csv").open()))
    assert {(row["height"], row["batch"]) for row in rows} == {("32", "3")}


@pytest.mark.parametrize("name", list(SUITES))
def test_the_shipped_suites_can_be_parsed(name):
    parser = OneLineParser()
    add_arguments(parser)
    for options in read_suite(name):
        args = parser.parse_args(options)
        assert args.device == {"cpu": "cpu", "gpu": "cuda"}[name]


def test_throughput_of_a_classifier(monkeypatch, toy_data_roots, capsys):
    data_root = f"data_root={toy_data_roots['classification']}"
    options = ("test_dataloader.batch_size=3", "test_dataloader.num_workers=0")
    tool_main(
        *(monkeypatch, BENCHMARK, "--config", CLASSIFIER, "--throughput", *FAST),
        *("--cfg-options", data_root, *options, "test_dataloader.persistent_workers=False"),
    )
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("batch_size 3 throughput ")
    assert float(line.split()[3]) > 0


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--arch", "nope"], ["--arch", "'nope'", "small"]),
        (["--arch", "{1"], ["--arch", "'{1'", "dict"]),
        (["--shape", "31"], ["--shape", "'31'", "at least 32"]),
        (["--shape", "64", "64", "64"], ["--shape 64 64 64", "height and width"]),
        (["--batch", "0"], ["--batch", "'0'", "at least 1"]),
        (["--mode", "test"], ["--mode", "'test'", "inference"]),
        (["--paths", "nope"], ["--paths", "'nope'", BASELINE]),
        (["--against", "jax"], ["--against", "'jax'", "mmdet"]),
        (["--dtype", "fp16"], ["--dtype fp16", "fp32 or bf16"]),
        (["--run", "cudagraph"], ["--run cudagraph", "eager or compile"]),
        (["--group-size", "7", "7"], ["group_size", "[7, 7]", "4 entries"]),
        (["--suite", "nope"], ["--suite nope", "cpu, gpu"]),
        (["--config", "nope.py"], ["nope.py", "does not exist"]),
        (["--config", str(CLASSIFIER), "--arch", "tiny"], ["--arch", "--cfg-options"]),
        (["--config", str(CLASSIFIER), "--throughput"], ["val", "data_root=DIR"]),
        (["--out", __file__], ["--out", "must be a folder"]),
        (["--throughput"], ["--throughput", "--config"]),
        (["--attention-memory", "--config", "a.py"], ["--attention-memory", "--arch"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_bad_arguments_are_named_in_one_line(monkeypatch, tmp_path, options, parts):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        tool_main(monkeypatch, BENCHMARK, "--device", "cpu", *options)
    message = str(caught.value)
    assert message.startswith("error: ") and "\n" not in message
    assert all(part in message for part in parts), message


def test_another_backbone_is_refused(monkeypatch):
    options = ("--cfg-options", "model.backbone.type=ResNet")
    with pytest.raises(SystemExit, match="backbone is ResNet, not CrossFormer"):
        tool_main(monkeypatch, BENCHMARK, *FAST, "--config", CLASSIFIER, *options)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["inference", "train"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(mode, dtype):
    case = Case(
        own_contenders(None, ["eager"]),
        backbone=dict(arch=TINY),
        mode=mode,
        shape=(64, 64),
        dtype=dtype,
        device="cuda",
        repeat=2,
    )
    for result in measure(case):
        assert result.problem is None and len(result.seconds) == 2 and result.peak_mb > 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cuda_graph_computes_the_same_again():
    layer = torch.nn.Linear(1024, 1024, device="cuda").requires_grad_(False)
    images = torch.rand(256, 1024, device="cuda")
    replay = GraphReplay(lambda: layer(images))
    images.fill_(1)
    replay()
    torch.testing.assert_close(replay.outputs, layer(images))
    assert replay.peak_mb >= 1
