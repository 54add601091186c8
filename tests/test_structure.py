"""Imports run downwards only, without circles, and the models need torch and mmengine only."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "crossformer_mm"
# Each folder may import those before it, and itself.
FOLDERS = (
    *("utils", "models", "checkpoints", "datasets"),
    *("engine", "deploy", "analysis", "visualization"),
)
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


NAMES = {module_name(file): file for file in FILES}


@cache
def imports_of(name: str) -> frozenset[str]:
    """The modules that a module imports anywhere in it, by full name."""
    found = set()
    for node in ast.walk(ast.parse(NAMES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in NAMES else node.module for one in full}
    return frozenset(found - {name})


def reached_from(name: str) -> set[str]:
    seen: set[str] = set()
    todo = [name]
    while todo:
        new = (imports_of(todo.pop()) & NAMES.keys()) - seen
        seen |= new
        todo += new
    return seen


def test_no_module_imports_itself_by_way_of_others():
    circles = [name for name in NAMES if name in reached_from(name)]
    assert not circles


def test_few_modules_stand_outside_the_folders():
    assert len(list(PACKAGE.glob("*.py"))) <= 3
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert {name for name in folders if name[0] not in "._"} == {*FOLDERS}  # .mim is made by setup


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_downwards(folder):
    above = FOLDERS[FOLDERS.index(folder) + 1 :]
    for name in NAMES:
        if name.startswith(f"crossformer_mm.{folder}."):
            parts = [found.split(".") for found in imports_of(name)]
            upwards = [p for p in parts if p[0] == "crossformer_mm" and p[1:2] and p[1] in above]
            assert not upwards, name


def test_the_models_need_torch_and_mmengine_only():
    allowed = {"torch", "mmengine", "triton", "crossformer_mm", *sys.stdlib_module_names}
    own = ("crossformer_mm.models", "crossformer_mm.utils")
    for name in NAMES:
        if name.startswith("crossformer_mm.models"):
            found = imports_of(name)
            assert {one.split(".")[0] for one in found} <= allowed, name
            assert all(o.startswith(own) for o in found if o.startswith("crossformer_mm")), name


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_first_line_says_the_idea(file):
    assert ast.get_docstring(ast.parse(file.read_text())), file
