"""A release: the wheel and the sdist are whole and valid, and work in new environments elsewhere.

These are filled as ``tools/install_stack.py`` fills them, and nothing of the checkout is on their
path. Only mmcv is not compiled again: its files are those of the environment that runs the tests.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from install_stack import Installation  # noqa: E402
from stack_versions import STACKS  # noqa: E402

pytestmark = pytest.mark.release

# What only those need who work on the project: hidden files and tests.
NOT_IN_SDIST = (".", "tests/")
MADE_BY_BUILD = ("PKG-INFO", "setup.cfg", "crossformer_mm.egg-info/")
NANO = "retinanet_crossformer-nano_fpn_toy-coco"


def run(*command: object, folder: Path) -> str:
    """What a command prints that succeeds in a folder, without the checkout on Python's path."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    streams = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=folder, env=env, text=True, timeout=600, **streams)
    assert result.returncode == 0, f"{words}: {result.stdout[-4000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def release_tools(tmp_path_factory) -> str:
    """The Python of an environment with what setup.py names for releases."""
    new = Installation(tmp_path_factory.mktemp("tools") / "venv")
    new.create()
    names = metadata.requires("crossformer_mm")
    wanted = [name.split(";")[0] for name in names if name.endswith('extra == "release"')]
    assert wanted and new.pip("install", *wanted) == 0, new.log.read_text()
    return new.python


@pytest.fixture(scope="module")
def committed(tmp_path_factory) -> Path:
    """What is committed, without what a checkout has besides."""
    folder = tmp_path_factory.mktemp("committed")
    run("git", "archive", "--output", folder / "all.tar", "HEAD", folder=ROOT)
    shutil.unpack_archive(folder / "all.tar", folder / "source")
    return folder / "source"


@pytest.fixture(scope="module")
def archives(release_tools, committed, tmp_path_factory) -> dict[str, Path]:
    """The sdist, and the wheel, which is built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(release_tools, "-m", "build", "--outdir", out, folder=committed)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return dict(wheel=wheel, sdist=sdist)


def test_archives_and_citation_are_valid(archives, release_tools, tmp_path):
    run(release_tools, "-m", "twine", "check", "--strict", *archives.values(), folder=tmp_path)
    cffconvert = Path(release_tools).with_name("cffconvert")
    run(cffconvert, "--validate", "-i", ROOT / "CITATION.cff", folder=tmp_path)


def test_the_sdist_has_everything_but_what_belongs_to_a_checkout(archives, committed):
    with tarfile.open(archives["sdist"]) as file:
        names = {member.name.partition("/")[2] for member in file if member.isfile()}
    shipped = {name for name in names if not name.startswith(MADE_BY_BUILD)}
    source = {str(path.relative_to(committed)) for path in committed.rglob("*") if path.is_file()}
    made = (*NOT_IN_SDIST, *MADE_BY_BUILD)
    assert shipped == {name for name in source if not name.startswith(made)}


def test_the_wheel_says_that_it_has_types(archives):
    with zipfile.ZipFile(archives["wheel"]) as file:
        assert "crossformer_mm/py.typed" in file.namelist()


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def installed(request, archives, tmp_path_factory) -> str:
    """The Python of a new environment with an archive and the libraries of this family."""
    folder = tmp_path_factory.mktemp(request.param)
    yield new_environment(folder / "venv", archives[request.param])
    shutil.rmtree(folder)  # it has gigabytes


def new_environment(folder: Path, archive: Path) -> str:
    mmcv = metadata.packages_distributions()["mmcv"][0]
    family = next(name for name, stack in STACKS.items() if stack["mmcv"].startswith(f"{mmcv}=="))
    new = Installation(folder)
    new.create()
    new.pip("install", "uv")
    torch = [f"{name}=={metadata.version(name)}" for name in ("torch", "torchvision")]
    new.install("PyTorch", *torch, *STACKS[family]["base"])
    (site,) = folder.glob("lib/python3*/site-packages")
    for file in metadata.files(mmcv):
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.locate(), site / file)
    new.install("the archive", f"crossformer_mm[{family}] @ {archive.as_uri()}")
    return new.python


def test_it_works_in_a_new_environment(installed, tmp_path):
    code = "import crossformer_mm; print(crossformer_mm.__file__)"
    package = Path(run(installed, "-c", code, folder=tmp_path).splitlines()[-1]).parent
    assert package.is_relative_to(Path(installed).parents[1])

    code = (
        "import mmpretrain, crossformer_mm; crossformer_mm.register_classifiers();"
        "names = mmpretrain.list_models('crossformer*'); mmpretrain.get_model(names[-1]);"
        "print(len(names))"
    )
    assert run(installed, "-c", code, folder=tmp_path).splitlines()[-1] == "8"

    tools = package / ".mim/tools"
    with ThreadPoolExecutor(2) as pool:
        commands = [(installed, tool, "--help") for tool in sorted(tools.glob("*.py"))]
        texts = list(pool.map(lambda command: run(*command, folder=tmp_path), commands))
    assert len(texts) >= 12 and all("usage: " in text for text in texts)

    make = (tools / "make_toy_dataset.py", "coco", "data/toy_coco", "--train", 2, "--val", 1)
    run(installed, *make, folder=tmp_path)
    config = package / f".mim/configs/detection/{NANO}.py"
    options = ("train_cfg.max_epochs=1", "train_dataloader.batch_size=2")
    said = run(installed, tools / "train.py", config, "--cfg-options", *options, folder=tmp_path)
    assert "Epoch(train) [1][1/1]" in said
    assert (tmp_path / f"work_dirs/{NANO}/epoch_1.pth").is_file()
