"""The set-up of a new machine: what it asks for, what it says when it fails, how it is mended."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from test_scripts import make_command

sys.path.insert(0, str(ROOT / "tools"))
import install_stack as setup  # noqa: E402
from stack_versions import STACKS  # noqa: E402

pytestmark = pytest.mark.families

# What mmcv's source distributions are built with: [build-system] requires of onedl-mmcv 2.3.6, and
# what torch 2.1.2's torch/utils/cpp_extension.py imports, `pkg_resources.packaging`.
SETUPTOOLS_TO_BUILD = {"onedl-mmcv==2.3.6": ">=80", "mmcv==2.1.0": "<70"}
# Releases around every limit, and the one that a new environment of Python 3.11 is born with.
SETUPTOOLS = ("65.5.0", "69.5.1", "70.0.0", "76.1.0", "77.0.3", "79.0.1", "80.10.2", "82.0.1")


@pytest.fixture
def words(monkeypatch) -> list[str]:
    """Have every command do nothing but list its words here, and the build of mmcv its version."""
    said: list[str] = []

    def run(self: setup.Installation, command: list[str], **env: str) -> int:
        said.extend(command)
        if command[1:3] == ["-m", "venv"]:
            make_command(Path(command[3]) / "bin", "python", "exit 0")
        return 0

    def build(_: object, requirement: str, standard: str) -> int:
        return said.append(requirement) or 0

    monkeypatch.setattr(setup.Installation, "run_once", run)
    monkeypatch.setattr(setup.Installation, "build_mmcv", build)
    return said


@pytest.mark.parametrize("family", STACKS)
def test_whatever_setuptools_is_kept_can_build_mmcv(words, tmp_path, family):
    setup.install_stack(family, tmp_path / "venv")
    mmcv = STACKS[family]["mmcv"]
    before = words[: words.index(mmcv)]
    (setuptools,) = {word for word in before if word.startswith("setuptools")}
    kept = list(Requirement(setuptools).specifier.filter(SETUPTOOLS))
    assert kept and all(version in SpecifierSet(SETUPTOOLS_TO_BUILD[mmcv]) for version in kept)
    assert {"wheel", "ninja", "psutil"} <= set(before)


def test_the_page_installs_the_same_by_hand():
    page = (ROOT / "docs/install.md").read_text()
    by_hand = re.search(r"^pip install (torch.*)$", page, re.M)[1]
    assert shlex.split(by_hand) == [*STACKS["onedl"]["torch"], *STACKS["onedl"]["base"]]


def test_the_sources_of_mmcv_are_grouped_without_losing_one(tmp_path):
    clashing = ("bezier_align", "roi_align", "psamask")
    names = sorted(["a", "b", "c", *(f"cpu/{name}" for name in clashing)])
    (tmp_path / "cpu").mkdir()
    for name in names:
        (tmp_path / f"{name}.cpp").touch()
    setup.group_sources(tmp_path, 4)
    groups = [file.read_text() for file in tmp_path.rglob("*.cpp")]
    assert len(groups) == 4
    assert sorted("".join(groups).splitlines()) == [f'#include "{name}.inc"' for name in names]
    assert all(sum(name in group for name in clashing) <= 1 for group in groups)


@pytest.fixture
def made(tmp_path) -> setup.Installation:
    """An installation with the log of an earlier step."""
    installation = setup.Installation(tmp_path)
    installation.log.write_text("an earlier step: No space left on device\n")
    return installation


def logging(made: setup.Installation, text: str, status: int = 1) -> int:
    with made.log.open("a") as log:
        log.write(text)
    return status


@pytest.mark.fault("the set-up, broken installs")
@pytest.mark.parametrize(
    ("log", "named"),
    [
        (
            "  error: subprocess-exited-with-error\n"
            "  × Preparing metadata did not run successfully.\n"
            "      setuptools.errors.InvalidConfigError: invalid pyproject.toml config\n"
            "      [end of output]\n  note: This error originates from a subprocess.\n"
            "error: metadata-generation-failed\n╰─> See above for output.\nhint: See above.\n",
            "InvalidConfigError: invalid pyproject.toml",
        ),
        ("extension.h:12: fatal error: Python.h: No such file\n", "python3-dev"),
        ("error: command 'g++' failed: No such file or directory\n", "apt install g++"),
        ("c++: fatal error: Killed signal terminated program cc1plus\n", "MAX_JOBS=1"),
        ("OSError: [Errno 28] No space left on device\n", "disk is full"),
        ("cause: invalid peer certificate: UnknownIssuer\n", "PIP_CERT"),
        ("ERROR: No version that satisfies torch (from versions: none)\n", "network"),
        ("ERROR: Package 'x' requires a different Python: 3.9.1\n", "this Python"),
    ],
)
def test_a_failed_step_says_what_is_wrong_and_what_to_do(made, log, named):
    with pytest.raises(setup.SetupError) as error:
        made.step("2/3 mmcv", lambda: logging(made, log))
    for part in ("2/3 mmcv", named, str(made.log)):
        assert part in str(error.value)
    assert "\n" not in str(error.value) and "metadata-generation" not in str(error.value)


@pytest.mark.fault("the set-up, broken installs")
def test_a_download_is_tried_three_times_and_pip_does_what_uv_cannot(made):
    results = iter([1, 1, 0])
    made.step("1/3", lambda: logging(made, "connection reset by peer\n", next(results)))
    assert next(results, None) is None
    tried = []
    with pytest.raises(setup.SetupError, match="network"):
        made.step("1/3", lambda: tried.append(1) or logging(made, "Read timed out\n"))
    assert len(tried) == 3
    made.step("1/3", lambda: logging(made, "invalid peer certificate\n"), lambda: 0)


@pytest.mark.fault("the set-up, broken installs")
def test_only_an_interrupted_set_up_is_made_anew(words, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["install_stack.py", "onedl", str(tmp_path / "venv")])
    interrupt = Mock(side_effect=KeyboardInterrupt)
    with monkeypatch.context() as broken:
        broken.setattr(setup.Installation, "build_mmcv", interrupt)
        with pytest.raises(SystemExit, match="^error: interrupted; the same command"):
            setup.main()
    (tmp_path / "venv/half-made").touch()
    setup.main()
    assert not {".unfinished", "half-made"} & set(os.listdir(tmp_path / "venv"))
    (tmp_path / "venv/mine").touch()  # only a half-made environment is made anew
    setup.main()
    assert (tmp_path / "venv/mine").exists()


@pytest.mark.fault("the set-up, broken installs")
def test_what_would_be_missed_minutes_later_is_looked_for_first(tmp_path, monkeypatch):
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * 2**30))
    with pytest.raises(setup.SetupError, match="10 GB of free disk .* has 2 GB"):
        setup.check_machine(tmp_path)
    monkeypatch.setattr(setup.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(setup.SetupError, match=r"Python\.h .* apt install python3-dev"):
        setup.check_machine(tmp_path)


def set_up(tmp_path: Path, *options: str, **env: str) -> subprocess.CompletedProcess:
    """Run the set-up as on a fresh machine: no active environment, none in the usual place."""
    others = ("PIP_", "CONDA", "VIRTUAL", "PYTHON")
    env = {k: v for k, v in os.environ.items() if not k.startswith(others)} | env
    env |= dict(PATH=f"{tmp_path}:{env['PATH']}", CROSSFORMER_VENV=str(tmp_path / "venv"))
    command = ["bash", str(ROOT / "tools/run_tests.sh"), *options, "--version"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


@pytest.mark.fault("the set-up, broken installs")
@pytest.mark.parametrize(
    ("options", "version", "named"),
    [
        ((), "3.8", ["Python 3.11 or 3.12 or 3.10", "3.8.1"]),
        (("--stack", "openmmlab"), "3.12", ["Python 3.11 or 3.10", "3.12.1"]),
        (("--stack", "mim"), "3.11", ["--stack mim", "onedl, openmmlab or newest"]),
        ((), None, ["no-such-compiler", "apt install g++"]),
    ],
)
def test_what_a_new_machine_lacks_is_named_in_one_line(tmp_path, options, version, named):
    python = "python3" if version else sys.executable
    for name in ("python3", "python3.10", "python3.11", "python3.12") if version else ():
        say = f'[ "$1" = --version ] && echo "Python {version}.1" || echo {version}'
        make_command(tmp_path, name, say)
    result = set_up(tmp_path, *options, PYTHON=python, CXX="no-such-compiler -O2")
    assert result.returncode == 1 and not (tmp_path / "venv").exists()
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert all(part in result.stderr for part in named)


def test_a_second_call_installs_nothing(tmp_path):
    # An interpreter that has everything, and refuses to install.
    make_command(tmp_path / "venv/bin", "python", '[ "$2" != pip ] && echo "python $*"')
    result = set_up(tmp_path)
    assert result.returncode == 0, result.stderr
    assert "pytest -n 2 --dist loadfile --max-worker-restart 0 --version" in result.stdout
