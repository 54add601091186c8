"""Importing: registration, the checks of what is installed, and what comes along."""

import json
import re
import subprocess
import sys
from importlib import metadata

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

from crossformer_mm import __version__

pytestmark = pytest.mark.families


def run_python(code: str, *paths: object) -> str:
    """Run code in a fresh interpreter, with folders in front of its import path.

    Returns the last line that it printed, or of the error that ended it.
    """
    setup = f"import sys; sys.path[:0] = {[*map(str, paths), str(ROOT)]!r}\n"
    result = subprocess.run(
        [sys.executable, "-c", setup + code], capture_output=True, text=True, timeout=120
    )
    return (result.stderr if result.returncode else result.stdout).strip().splitlines()[-1]


def hidden(module: str) -> str:
    """Code that hides a module from what is imported after it."""
    return (
        "import importlib.util as u\n"
        "real = u.find_spec\n"
        f"u.find_spec = lambda name, *a: None if name == {module!r} else real(name, *a)\n"
        f"sys.modules[{module!r}] = None\n"
    )


def test_the_backbone_needs_no_other_library():
    names = run_python(
        "import json\n"
        "finders, arguments = list(sys.meta_path), list(sys.argv)\n"
        "import crossformer_mm\n"
        "assert sys.meta_path == finders and sys.argv == arguments\n"
        "crossformer_mm.CrossFormer('tiny')\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    loaded = {name.partition(".")[0] for name in json.loads(names)}
    assert {"torch", "mmengine"} <= loaded
    assert not loaded & {"mmcv", "mmdet", "mmseg", "mmpretrain", "timm", "einops", "torchvision"}


@pytest.mark.fault("the set-up, broken installs")
def test_without_opencv_the_backbone_works_alone():
    code = "import crossformer_mm\nprint(type(crossformer_mm.CrossFormer('tiny')).__name__)"
    assert run_python(hidden("cv2") + code) == "CrossFormer"


def test_classifiers_are_registered_where_mmpretrain_is_there_already():
    code = "import mmpretrain, crossformer_mm\nprint(mmpretrain.list_models('crossformer-s*'))"
    assert "crossformer-small_8xb128_in1k" in run_python(code)


@pytest.mark.fault("the set-up, broken installs")
def test_without_mmengine_the_import_says_what_to_install():
    said = run_python(hidden("mmengine") + "import crossformer_mm")
    assert said.startswith("ImportError: ") and "needs mmengine" in said and "pip install" in said


@pytest.mark.fault("the set-up, broken installs")
@pytest.mark.parametrize(
    ("module", "old"), [("mmdet", "2.28.2"), ("mmseg", "0.30.0"), ("mmpretrain", "0.9.9")]
)
def test_an_old_library_is_named(tmp_path, module, old):
    (tmp_path / module).mkdir()
    (tmp_path / module / "__init__.py").write_text("from .version import __version__\n")
    (tmp_path / module / "version.py").write_text(f"__version__ = '{old}'\n")
    said = run_python("import crossformer_mm", tmp_path)
    assert said.startswith("ImportError: ") and "pip install" in said
    assert f"needs {module} " in said and f"but {old} is installed" in said


# Users' configs, and what works in a checkout only
LEFT_OUT = (
    *("__pycache__", "own", "install_stack.py", "quickstart.sh", "run_tests.sh", "setup_env.sh"),
    *("stack_versions.py", "update_model_zoo.py"),
)


def test_the_version_is_the_same_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_a_wheel_carries_configs_tools_and_index(tmp_path):
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)],
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    mim = tmp_path / "crossformer_mm" / ".mim"
    for name in ("configs", "tools"):
        shipped, source = (
            {p.relative_to(root) for p in (root / name).rglob("*") if p.is_file()}
            for root in (mim, ROOT)
        )
        assert shipped and shipped == {p for p in source if not {*p.parts} & {*LEFT_OUT}}
    assert (mim / "model-index.yml").read_text() == (ROOT / "model-index.yml").read_text()
    code = "from crossformer_mm.utils import index\nprint(index.find_index_root())"
    assert run_python(code, tmp_path) == str(mim)


ROWS = re.findall(
    r"^\| (\S+) \| [^|]+ \| (\d\S*) \| (\d\S*) \| ([^|]+) \|$",
    (ROOT / "docs/dependencies.md").read_text(),
    re.MULTILINE,
)


def test_every_requirement_is_in_the_table_of_dependencies():
    names = [name for name, *_ in ROWS]
    assert len(names) == len({*names})
    for requirement in map(Requirement, metadata.requires("crossformer_mm")):
        (row,) = [row for row in ROWS if row[0] == requirement.name]
        lowest, highest = map(Version, row[1:3])
        assert lowest <= highest, row
        assert any(version in requirement.specifier for version in (lowest, highest)), row


@pytest.mark.parametrize("name", [name for name, *_ in ROWS])
def test_a_licence_is_what_the_package_declares(name):
    try:
        declared = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        pytest.skip("not installed here")
    fields = ("License-Expression", "License", "Classifier")
    texts = [text for field in fields for text in declared.get_all(field) or ()]
    licence = next(row[3] for row in ROWS if row[0] == name)
    short = re.split(r"[- ]", licence)[0]
    told = {"PSF": "PSF|Python Software Foundation", "Apache": "Apache"}.get(short, short)
    assert any(re.search(told, text) for text in texts), texts
