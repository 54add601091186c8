"""Heads of the libraries over the backbone: the table of docs/heads.md, and failures."""

import runpy

import pytest
from conftest import ROOT, tool_main

from crossformer_mm.analysis.heads import HEADS, try_head

TOOL, PAGE = ROOT / "tools/try_heads.py", ROOT / "docs/heads.md"
CLASSIFIER = next(head for head in HEADS if head.name == "linear classifier")


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_a_head_does_what_the_page_says(head):
    row = runpy.run_path(str(TOOL))["make_row"](head, try_head(head))
    assert row.endswith("| ok | ok |\n") and row in PAGE.read_text()


def test_the_page_lists_every_head_once_and_in_order():
    table = PAGE.read_text().split("-->")[1]
    listed = [tuple(line[2:].split(" | ")[:2]) for line in table.splitlines() if "::" in line]
    assert listed == [(head.name, f"`{head.config}`") for head in HEADS]


@pytest.mark.parametrize(
    ("change", "training", "prediction"),
    [
        # Channels that do not fit, a stage that does not learn, a class of the labels too few
        (dict(replaced={"head.in_channels": 77}), "RuntimeError: mat1 and mat2", "RuntimeError: "),
        (
            dict(backbone={**CLASSIFIER.backbone, "frozen_stages": 1}),
            "ValueError: backbone.patch_embed.projs.0.weight has no finite gradient",
            "ok",
        ),
        (dict(replaced={**CLASSIFIER.replaced, "head.num_classes": 2}), "IndexError: ", "ok"),
        (dict(replaced={"head.type": "NoHead"}), "KeyError: ", "KeyError: "),
    ],
)
def test_a_head_that_does_not_work_says_why(change, training, prediction):
    trial = try_head(CLASSIFIER._replace(**change))
    assert trial.training.startswith(training) and trial.prediction.startswith(prediction)
    assert "\n" not in trial.training + trial.prediction


def test_the_tool_prints_the_row_of_a_head(capsys):
    tool_main(TOOL, CLASSIFIER.name)
    assert capsys.readouterr().out in PAGE.read_text()


def test_the_tool_writes_a_table_between_the_marks(tmp_path, monkeypatch):
    monkeypatch.setattr("crossformer_mm.analysis.heads.HEADS", (CLASSIFIER,))
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- table: tools/try_heads.py -->\nold\n<!-- end of table -->\nafter\n"
    )
    tool_main(TOOL, "--out", page)
    first, *table, last = page.read_text().splitlines()
    assert (first, last) == ("before", "after") and "old" not in table and len(table) == 5
    assert table[3] in PAGE.read_text()


def test_a_wrong_argument_is_named_in_one_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no table")
    for message, arguments in {
        "there is no head 'YOLO': the names are 'Faster R-CNN', ": ["YOLO"],
        "--out takes all heads, so name none": ["FCOS", "--out", page],
        f"--out {page} is not a page with a line <!-- table": ["--out", page],
        "--out nowhere.md is not a page": ["--out", "nowhere.md"],
    }.items():
        with pytest.raises(SystemExit, match=rf"^error: [^\n]*{message}[^\n]*$"):
            tool_main(TOOL, *arguments)
    assert page.read_text() == "no table"
