"""The libraries' own tools on this project's configs: the table of docs/library_tools.md."""

import runpy
from types import SimpleNamespace

import pytest
from conftest import ROOT, tool_main

PAGE = (ROOT / "docs/library_tools.md").read_text()
TOOL = ROOT / "tools/try_library_tools.py"
TRIED = SimpleNamespace(**runpy.run_path(str(TOOL)))
ROWS = [line for line in PAGE.splitlines() if line.startswith("| mm")]


def test_the_page_lists_every_tool_once_and_in_order():
    listed = [[cell.strip() for cell in row.split("|")[1:4]] for row in ROWS]
    assert listed == [[tool.library, f"`{tool.tool}`", tool.needs] for tool in TRIED.TOOLS]


def test_on_the_page_each_works_as_it_ships_or_after_its_line_but_for_a_gpu():
    for row, tool in zip(ROWS, TRIED.TOOLS, strict=True):
        shipped, mended = (cell.strip() for cell in row.split("|")[4:6])
        assert "GPU" in tool.needs or "ok" in (shipped, mended.removesuffix(f": `{tool.mend}`"))


@pytest.fixture
def try_script(tmp_path):
    """Try a script as if a library shipped it: what it prints or leaves has an ``a``."""

    def try_script(code: str, mend: str = "") -> str:
        (tmp_path / "tools").mkdir(exist_ok=True)
        (tmp_path / "tools/script.py").write_text(code)
        tool = TRIED.LibraryTool("mmdet", "script.py mode", "out", r"left a\.txt|a = 1", mend=mend)
        return TRIED.make_row(tool, tmp_path)

    return try_script


@pytest.mark.parametrize(
    ("code", "shipped"),
    [
        ("print('a = 1')", "ok"),
        ("import sys; assert sys.argv[1:] == ['mode', 'out']; open('out/a.txt', 'w')", "ok"),
        ("print('b')", "exit status 0"),  # went well, and left nothing
        ("print('a = 1'); raise SystemExit(3)", "exit status 3"),
        ("import json; json.loads('{')", "`json.decoder.JSONDecodeError: Expecting property name"),
        ("import nothing_at_all", "`ModuleNotFoundError: No module named 'nothing_at_all'`"),
    ],
)
def test_a_tool_that_does_not_work_says_why(code, shipped, try_script):
    row = try_script(code)
    assert row.startswith(f"| mmdet | `script.py mode` |  | {shipped}") and row.endswith("|  |\n")


def test_a_tool_that_fails_is_tried_again_after_its_line(try_script, tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/beside.py").write_text("")
    code = "import beside, os; print('a =', os.environ['A_NUMBER'])"
    mend = "import os; os.environ['A_NUMBER'] = '1'"
    assert try_script(code, mend).endswith(f"| `KeyError: 'A_NUMBER'` | ok: `{mend}` |\n")
    assert "| `KeyError: 'A_NUMBER'` | `KeyError" in try_script(code, "import os")


def test_a_tool_that_a_library_does_not_ship_is_no_failure_of_ours(tmp_path):
    row = TRIED.make_row(TRIED.LibraryTool("mmdet", "no.py", "", ""), tmp_path)
    assert row == "| mmdet | `no.py` |  | not in this version |  |\n"


def test_a_wrong_name_is_named_in_one_line():
    message = "error: there is no tool 'mmdet/train': the names are mmdet/browse_dataset, mmdet/"
    with pytest.raises(SystemExit, match=rf"^{message}[^\n]*$"):
        tool_main(TOOL, "mmdet/train")


@pytest.mark.slow
def test_tools_without_packages_of_their_own_do_what_the_page_says(capfd):
    names = ["mmdet/browse_dataset", "mmseg/get_flops", "mmpretrain/print_config"]
    tool_main(TOOL, *names, "mmpretrain/publish_model")
    printed = capfd.readouterr().out.splitlines()[2:]
    assert len(printed) == 4
    # The families differ in torch, and so in what publish_model.py needs.
    assert all("| ok" in row and row.split("|")[2] in PAGE for row in printed)
