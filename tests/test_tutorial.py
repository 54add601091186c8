"""The tutorial runs from an empty folder to a detector, and what it keeps is what it says.

The test with the mark `tutorial` runs it, in minutes; the other reads the outputs that are kept.
"""

import json
import re
from collections.abc import Iterator

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from nbformat import NotebookNode
from test_docs import check_what_is_named

TUTORIAL = ROOT / "docs/tutorial.ipynb"
SECONDS = 600  # of a cell, before it is taken for one that hangs
LEAST_AP = 0.3  # after a third of the training it is 0.17
MOST_BYTES = 1_000_000
BOX = re.compile(r"^([a-z ]+) (\d\.\d\d) at \[(.*)\]", re.MULTILINE)
ABSOLUTE = re.compile(r"(?<![\w.])/(home|root|tmp|work|Users|opt|mnt)/")


def code_cells(notebook: NotebookNode) -> Iterator[NotebookNode]:
    """The cells that are run."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and "skip-execution" not in cell.metadata.get("tags", []):
            yield cell


def printed(notebook: NotebookNode, command: str = "") -> str:
    """What the cells printed, or the one with a command."""
    cells = [cell for cell in code_cells(notebook) if command in f"{cell.source}\n"]
    assert len(cells) == 1 or not command
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


def count_pictures(notebook: NotebookNode) -> list[int]:
    """How many pictures each cell shows."""
    outputs = [cell.get("outputs", ()) for cell in notebook.cells]
    kinds = [[kind for output in each for kind in output.get("data", ())] for each in outputs]
    return [sum(kind.startswith("image/") for kind in each) for each in kinds]


def boxes(text: str) -> list[tuple]:
    """The names, scores and boxes that a text lists."""
    return [(name, float(score), json.loads(f"[{box}]")) for name, score, box in BOX.findall(text)]


def check_outputs(notebook: NotebookNode) -> None:
    """Both slips are found, the model has learned, and the exported one finds the same."""
    cells = list(code_cells(notebook))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "error" not in {output.output_type for cell in cells for output in cell.outputs}
    assert "errors: 2" in printed(notebook, "new_dataset.py data/tutorial\n")
    assert "changes: 2" in printed(notebook, "--copy-fixed")
    *_, trained = re.findall(r"bbox_mAP: (\S+)", printed(notebook, "tools/train.py"))
    overall = r"\(AP\) @\[ IoU=0.50:0.95 \| area= +all \|.*= (\S+)"
    tested = re.search(overall, printed(notebook, "tools/test.py"))[1]
    assert float(tested) >= float(trained) > LEAST_AP  # the best checkpoint, and the last
    exported = printed(notebook, "examples/run_exported.py")
    found = boxes(printed(notebook, "tools/demo.py"))
    assert found
    pairs = zip(found, boxes(exported), strict=True)
    for (name, score, box), (same_name, same_score, same_box) in pairs:
        assert same_name == name
        assert same_score == pytest.approx(score, abs=0.011)
        assert same_box == pytest.approx(box, abs=1)
    assert dict(re.findall(r"^(\w+) +(imported|-)\r?$", exported, re.MULTILINE)) == {
        **dict.fromkeys(("numpy", "PIL", "onnxruntime"), "imported"),
        **dict.fromkeys(("torch", "mmengine", "mmcv", "mmdet", "crossformer_mm"), "-"),
    }


def test_what_is_kept_is_of_a_whole_run_and_what_is_named_exists():
    notebook = nbformat.read(TUTORIAL, as_version=4)
    nbformat.validate(notebook)
    check_outputs(notebook)
    assert sum(count_pictures(notebook)) >= 7
    assert TUTORIAL.stat().st_size < MOST_BYTES
    text = printed(notebook)
    assert not ABSOLUTE.search(text) and not re.search("Traceback|Warning", text)
    check_what_is_named("\n\n".join(cell.source for cell in notebook.cells), TUTORIAL.parent)


@pytest.mark.tutorial
def test_it_runs_from_an_empty_folder(tmp_path, monkeypatch):
    for name in ("tools", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # of tests, which run two at a time
    kept, notebook = (nbformat.read(TUTORIAL, as_version=4) for _ in range(2))
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    where = dict(metadata=dict(path=str(tmp_path / "docs")))
    NotebookClient(notebook, timeout=SECONDS, resources=where).execute()
    check_outputs(notebook)
    assert count_pictures(notebook) == count_pictures(kept)
