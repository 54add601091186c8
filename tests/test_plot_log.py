"""tools/plot_log.py: the curves have the values of the logs, resumed runs are joined."""

import json
import math
from pathlib import Path

import pytest
from conftest import ROOT, tool_main
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmengine.visualization import LocalVisBackend
from PIL import Image

from crossformer_mm.visualization.curves import choose_labels, choose_panels, draw_curves
from crossformer_mm.visualization.training_log import EPOCH, ITERATION, Run, read_run

TOOL = ROOT / "tools/plot_log.py"


def log_with_mmengine(folder: Path, lines: list[dict]) -> None:
    """Write lines as mmengine's logger hook does, into both files that it writes."""
    backend = LocalVisBackend(str(folder / "vis_data"))
    for line in lines:
        backend.add_scalars(line, step=line["step"], file_path=f"{folder.name}.json")


def training_line(iteration: int, loss: float, epoch: int | None = None) -> dict:
    line = dict(lr=0.1 / iteration, time=0.5, loss=loss, iter=iteration, step=iteration)
    return line if epoch is None else dict(line, epoch=epoch)


def metric_line(step: int, **metrics: float) -> dict:
    return dict(metrics, data_time=0.1, time=0.2, step=step)


def log_epochs(folder: Path, epochs: range, loss: float) -> None:
    """Log epochs of 10 iterations, every 5, and validate after each."""
    lines = []
    for epoch in epochs:
        for iteration in (10 * epoch - 5, 10 * epoch):
            lines.append(training_line(iteration, loss + iteration, epoch))
        lines.append(metric_line(epoch, **{"coco/bbox_mAP": loss / epoch, "coco/bbox_mAP_50": 1}))
    log_with_mmengine(folder, lines)


@pytest.fixture
def work_dir(tmp_path) -> Path:
    """A run that was killed in its third epoch and resumed from its second."""
    folder = tmp_path / "detector"
    log_epochs(folder / "20260101_000000", range(1, 4), loss=100)
    log_epochs(folder / "20260102_000000", range(3, 5), loss=200)
    return folder


def test_a_resumed_run_is_joined_in_order(work_dir):
    run = read_run(work_dir)
    joined = {5: 105, 10: 110, 15: 115, 20: 120, 25: 225, 30: 230, 35: 235, 40: 240}
    assert run.curves["loss", ITERATION] == joined
    assert run.curves["lr", ITERATION] == {i: 0.1 / i for i in joined}
    assert run.curves["coco/bbox_mAP", EPOCH] == {1: 100, 2: 50, 3: 200 / 3, 4: 50}
    assert run.metrics == {"coco/bbox_mAP", "coco/bbox_mAP_50"} and run.name == "detector"


def test_a_metric_of_an_epoch_that_was_trained_again_is_dropped(tmp_path):
    log_epochs(tmp_path / "20260101_000000", range(1, 4), loss=100)
    log_with_mmengine(tmp_path / "20260102_000000", [training_line(25, 9.0, epoch=3)])
    assert read_run(tmp_path).curves["coco/bbox_mAP", EPOCH] == {1: 100, 2: 50}


def test_a_run_begun_anew_replaces_the_one_before(work_dir):
    log_epochs(work_dir / "20260103_000000", range(1, 2), loss=300)
    run = read_run(work_dir)
    assert run.curves["loss", ITERATION] == {5: 305, 10: 310}
    assert run.curves["coco/bbox_mAP", EPOCH] == {1: 300}


def test_metrics_of_a_run_by_iterations_lie_on_iterations(tmp_path):
    lines = [training_line(50, 2.0), metric_line(50, mIoU=30), training_line(100, 1.0)]
    log_with_mmengine(tmp_path / "t", [*lines, metric_line(100, mIoU=40)])
    assert read_run(tmp_path).curves["mIoU", ITERATION] == {50: 30, 100: 40}


def test_epochs_are_known_also_where_none_of_their_iterations_was_logged(tmp_path):
    lines = [training_line(50, 2.0, epoch=1), metric_line(1, a=30), metric_line(2, a=40)]
    log_with_mmengine(tmp_path / "t", lines)
    assert read_run(tmp_path).curves["a", EPOCH] == {1: 30, 2: 40}


def test_epochs_can_be_logged_by_iterations_too(tmp_path):
    lines = [training_line(50, 2.0, epoch=1), metric_line(50, mIoU=30)]
    log_with_mmengine(tmp_path / "t", lines)
    assert read_run(tmp_path).curves["mIoU", ITERATION] == {50: 30}


@pytest.mark.parametrize(
    "inside",
    ["", "vis_data", "vis_data/scalars.json", "vis_data/20260102_000000.json"],
)
def test_one_log_of_a_run_can_be_named(work_dir, inside):
    run = read_run(work_dir / "20260102_000000" / inside)
    assert run.curves["loss", ITERATION] == {25: 225, 30: 230, 35: 235, 40: 240}
    assert run.name == "detector"


def test_the_other_log_file_will_do(work_dir):
    for log in work_dir.glob("*/vis_data/scalars.json"):
        log.unlink()
    assert len(read_run(work_dir).curves["loss", ITERATION]) == 8


def test_a_line_cut_off_is_left_out_and_reported(monkeypatch, capsys, work_dir, tmp_path):
    log = work_dir / "20260102_000000/vis_data/scalars.json"
    with log.open("a") as file:
        file.write('{"lr": 0.1, "loss": 0.5, "it')
    tool_main(monkeypatch, TOOL, work_dir, "--out", tmp_path / "p.png")
    assert f"{work_dir}: left out 1 unreadable line(s)" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [{"iter": None}, {"step": "12"}, {"epoch": None}])
def test_a_line_that_does_not_say_where_it_belongs_is_left_out(tmp_path, wrong):
    lines = [training_line(5, 1.0, epoch=1), dict(training_line(10, 2.0, epoch=1), **wrong)]
    log_with_mmengine(tmp_path / "t", lines)
    run = read_run(tmp_path)
    assert run.unreadable == 1 and run.curves["loss", ITERATION] == {5: 1.0}


def test_names_may_be_equal_and_have_any_signs(work_dir):
    runs = [read_run(work_dir)] * 3
    for names in (["same"] * 3, ["run $x^$", "_hidden", "$"]):
        figure = draw_curves(runs, [("loss", ITERATION), ("lr", ITERATION)], names)
        FigureCanvasAgg(figure).draw()
        legend = figure.legends[0]
        assert [text.get_text() for text in legend.get_texts()] == names
        colours = [line.get_color() for line in legend.get_lines()]
        assert colours == [line.get_color() for line in figure.axes[0].get_lines()]
        assert len(set(colours)) == 3


def curves_in(figure) -> dict[str, dict[str, tuple]]:
    """Points of every curve by title and label."""
    return {
        axes.get_title(): {
            line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
            for line in axes.get_lines()
        }
        for axes in figure.axes
        if axes.axison
    }


def test_the_curves_have_the_values_of_the_logs(work_dir, tmp_path):
    other = tmp_path / "other"
    log_epochs(other / "20260104_000000", range(1, 2), loss=7)
    runs = [read_run(work_dir), read_run(other)]
    figure = draw_curves(runs, choose_panels(runs, None), ["one", "two"])
    drawn = curves_in(figure)
    assert list(drawn) == ["loss", "lr", "coco/bbox_mAP"]
    assert drawn["loss"]["one"][1] == [105, 110, 115, 120, 225, 230, 235, 240]
    assert drawn["loss"]["two"] == ([5, 10], [12, 17])
    assert drawn["lr"]["two"] == ([5, 10], [0.1 / 5, 0.1 / 10])
    assert drawn["coco/bbox_mAP"] == {
        "one": ([1, 2, 3, 4], [100, 50, 200 / 3, 50]),
        "two": ([1], [7]),
    }
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    assert {axes.get_title(): axes.get_xlabel() for axes in figure.axes} == {
        "loss": "iteration",
        "lr": "iteration",
        "coco/bbox_mAP": "epoch",
    }


def test_keys_are_names_or_patterns(work_dir):
    runs = [read_run(work_dir)]
    assert choose_panels(runs, ["coco/*", "loss", "coco/bbox_mAP"]) == [
        ("coco/bbox_mAP", EPOCH),
        ("coco/bbox_mAP_50", EPOCH),
        ("loss", ITERATION),
    ]


def test_without_a_main_metric_all_are_drawn(tmp_path):
    log_with_mmengine(tmp_path / "t", [training_line(5, 1.0), metric_line(5, a=1, b=2)])
    panels = choose_panels([read_run(tmp_path)], None)
    assert [key for key, _ in panels] == ["loss", "lr", "a", "b"]


def test_runs_of_one_name_are_told_apart_by_path():
    runs = [Run("x"), Run("x"), Run("y")]
    assert choose_labels(runs, ["a/x", "b/x", "c/y"], None) == ["a/x", "b/x", "y"]


def test_a_loss_that_is_not_a_number_leaves_a_gap(tmp_path):
    log_with_mmengine(tmp_path / "t", [training_line(5, 1.0), training_line(10, math.nan)])
    runs = [read_run(tmp_path)]
    places, values = curves_in(draw_curves(runs, [("loss", ITERATION)], ["x"]))["loss"]["x"]
    assert places == [5, 10] and values[0] == 1 and math.isnan(values[1])


def test_the_tool_writes_a_picture(monkeypatch, capsys, work_dir, tmp_path):
    out = tmp_path / "new/curves.png"
    tool_main(
        monkeypatch, TOOL, work_dir, work_dir, "--out", out, "--keys", "lr", "--legend", "a", "b"
    )
    assert f"Wrote {out}: lr" in capsys.readouterr().out
    with Image.open(out) as image:
        assert image.format == "PNG" and min(image.size) > 200
    assert [file.name for file in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["no"], "no does not exist: give a log file or a work directory"),
        (["empty"], "empty holds no log: expected <timestamp>/vis_data/scalars.json"),
        (["empty.json"], "empty.json: the log has no data"),
        (["RUN", "--out", "p.svg"], "--out p.svg must end with .png"),
        (["RUN", "--out", "empty.json/p.png"], "--out empty.json/p.png cannot be written: "),
        (["RUN", "--keys", "mIoU"], "--keys mIoU: the logs have coco/bbox_mAP, coco/bbox_mAP_50"),
        (["RUN", "--legend", "a", "b"], "--legend has 2 names for 1 runs"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(monkeypatch, tmp_path, work_dir, arguments, named):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.json").write_text(json.dumps(["not", "scalars"]) + "\n\n")
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    run, *options = [work_dir if argument == "RUN" else argument for argument in arguments]
    with pytest.raises(SystemExit) as exit_info:
        tool_main(monkeypatch, TOOL, run, "--out", "p.png", *options)
    message = exit_info.value.code
    assert message.startswith("error: ") and named in message and "\n" not in message
    assert sorted(tmp_path.iterdir()) == before
