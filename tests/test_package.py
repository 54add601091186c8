"""Importing: registration, the checks of what is installed, and what comes along."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

import crossformer_mm
from crossformer_mm.utils.requirements import check_installed, installed_version

pytestmark = pytest.mark.families


def run_python(code: str, *paths: object) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter, with folders in front of its import path."""
    setup = f"import sys; sys.path[:0] = {[*map(str, paths), str(ROOT)]!r}\n"
    return subprocess.run(
        [sys.executable, "-c", setup + code], capture_output=True, text=True, timeout=120
    )


def test_the_bare_name_is_found_from_every_library():
    from mmengine.registry import MODELS

    for scope in ("mmpretrain", "mmdet", "mmseg"):
        with MODELS.switch_scope_and_registry(scope) as registry:
            backbone = registry.build(dict(type="CrossFormer", arch="tiny"))
        assert type(backbone) is crossformer_mm.CrossFormer


def test_the_backbone_needs_no_other_library():
    result = run_python(
        "import json\n"
        "finders, arguments = list(sys.meta_path), list(sys.argv)\n"
        "import crossformer_mm\n"
        "assert sys.meta_path == finders and sys.argv == arguments\n"
        "crossformer_mm.CrossFormer('tiny')\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    loaded = {name.partition(".")[0] for name in json.loads(result.stdout)}
    assert {"torch", "mmengine"} <= loaded
    assert not loaded & {"mmcv", "mmdet", "mmseg", "mmpretrain", "timm", "einops", "torchvision"}


def test_without_opencv_the_backbone_works_alone():
    result = run_python(
        "import importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'cv2' else real(name, *a)\n"
        "sys.modules['cv2'] = None\n"
        "import crossformer_mm\n"
        "print(sum(p.numel() for p in crossformer_mm.CrossFormer('tiny').parameters()))"
    )
    assert result.returncode == 0 and int(result.stdout) > 2e7, result.stderr


def test_classifiers_are_registered_where_mmpretrain_is_there_already():
    result = run_python(
        "import mmpretrain, crossformer_mm\nprint(mmpretrain.list_models('crossformer-s*'))"
    )
    assert "crossformer-small_8xb128_in1k" in result.stdout, result.stderr


def test_without_mmengine_the_import_says_what_to_install():
    hide = (
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'mmengine': raise ModuleNotFoundError(name)\n"
    )
    missing = run_python(
        "import importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'mmengine' else real(name, *a)\n"
        f"{hide}sys.meta_path.insert(0, Hide())\nimport crossformer_mm"
    )
    assert missing.returncode != 0
    last_line = missing.stderr.strip().splitlines()[-1]
    assert "needs mmengine" in last_line and "pip install" in last_line


@pytest.mark.parametrize(
    ("module", "old"), [("mmdet", "2.28.2"), ("mmseg", "0.30.0"), ("mmpretrain", "0.9.9")]
)
def test_an_old_library_is_named(tmp_path, module, old):
    (tmp_path / module).mkdir()
    (tmp_path / module / "__init__.py").write_text("from .version import __version__\n")
    (tmp_path / module / "version.py").write_text(f"__version__ = '{old}'\n")
    result = run_python("import crossformer_mm", tmp_path)
    assert result.returncode != 0
    last_line = result.stderr.strip().splitlines()[-1]
    assert module in last_line and old in last_line and "pip install" in last_line


def test_versions_are_read_without_importing():
    import mmdet

    assert installed_version("mmdet") == mmdet.__version__
    assert installed_version("no_such_module") is None
    check_installed()


def test_a_wheel_carries_configs_tools_and_index(tmp_path):
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)],
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    mim = tmp_path / "crossformer_mm" / ".mim"
    for name in ("configs", "tools"):
        shipped = {p.relative_to(mim) for p in (mim / name).rglob("*") if p.is_file()}
        source = {
            p.relative_to(ROOT)
            for p in (ROOT / name).rglob("*")
            if p.is_file() and "__pycache__" not in p.parts
        }
        assert shipped == source and source
    assert (mim / "model-index.yml").read_text() == (ROOT / "model-index.yml").read_text()
    found = run_python(
        "from crossformer_mm.utils import index; print(index.find_index_root())", tmp_path
    )
    assert found.stdout.strip() == str(mim), found.stderr
