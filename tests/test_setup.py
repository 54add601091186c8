"""The set-up of a new machine: what it asks for, what it says when it fails, how it is mended."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace

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


SOURCES = ("a", "b", "c", "cpu/bezier_align", "cpu/psamask", "cpu/roi_align")


def write_sources(folder: Path) -> None:
    (folder / "cpu").mkdir(parents=True)
    for name in SOURCES:
        (folder / f"{name}.cpp").write_text("")


class RecordingPip:
    """Stands in for every command: writes down what is installed, and makes a source archive."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[list[str]] = []
        monkeypatch.setattr(setup.Installation, "run_once", self.run)

    def run(self, command: list[str], **env: str) -> int:
        self.commands.append(command)
        if command[1:3] == ["-m", "venv"]:
            make_command(Path(command[3]) / "bin", "python", "exit 0")
        if "download" in command:
            folder = Path(command[command.index("--dest") + 1])
            write_sources(folder / "made/mmcv/ops/csrc/pytorch")
            (folder / "made/setup.py").write_text("args = ['-std=c++17']")
            with tarfile.open(folder / "mmcv.tar.gz", "w:gz") as tar:
                tar.add(folder / "made", "mmcv-1")
            shutil.rmtree(folder / "made")
        return 0

    def asked(self) -> dict[str, Requirement]:
        """Every requirement with a version that was asked for, by name."""
        words = [word for command in self.commands for word in command if word[0] not in "-/"]
        named = [Requirement(word) for word in words if re.search("[<>=]=|<|>", word)]
        return {requirement.name: requirement for requirement in named}


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """Set up a family with the stand-in, and return what was asked for."""

    def install(family: str) -> RecordingPip:
        pip = RecordingPip(monkeypatch)
        setup.install_stack(family, tmp_path / family)
        return pip

    return install


@pytest.mark.parametrize("family", STACKS)
def test_whatever_setuptools_is_kept_can_build_mmcv(recorded, family):
    mmcv = STACKS[family]["mmcv"]
    pip = recorded(family)
    first_download = next(i for i, command in enumerate(pip.commands) if mmcv in command)
    pip.commands = pip.commands[:first_download]
    asked = pip.asked()["setuptools"].specifier
    kept = list(asked.filter(SETUPTOOLS))
    assert kept and all(version in SpecifierSet(SETUPTOOLS_TO_BUILD[mmcv]) for version in kept)
    assert {"wheel", "ninja", "psutil"} <= {word for command in pip.commands for word in command}


def test_the_readme_installs_the_same_by_hand():
    by_hand = re.search(r"^pip install (torch.*)$", (ROOT / "README.md").read_text(), re.M)[1]
    assert shlex.split(by_hand) == [*STACKS["onedl"]["torch"], *STACKS["onedl"]["base"]]


@pytest.mark.parametrize("family", STACKS)
def test_what_is_asked_for_is_what_the_installed_packages_need(recorded, family):
    installed = {d.metadata["Name"].lower().replace("_", "-"): d for d in distributions()}
    wanted = [Requirement(STACKS[family]["mmcv"]), Requirement(STACKS[family]["torch"][0])]
    if any(w.name not in installed or installed[w.name].version not in w.specifier for w in wanted):
        pytest.skip(f"{family} is not what is installed here")
    asked = recorded(family).asked()
    for distribution in installed.values():
        for text in distribution.requires or ():
            needed = Requirement(text)
            if needed.name not in asked or (needed.marker and not needed.marker.evaluate()):
                continue
            version = installed[needed.name].version
            assert version in asked[needed.name].specifier, f"{needed.name} {version}"
            assert version in needed.specifier, f"{distribution.name} needs {needed}"


def test_the_sources_of_mmcv_are_grouped_without_losing_one(tmp_path):
    write_sources(tmp_path)
    setup.group_sources(tmp_path, 4)
    groups = [file.read_text().split("\n")[:-1] for file in sorted(tmp_path.glob("*.cpp"))]
    included = [line for group in groups for line in group]
    assert len(groups) == 4 and sorted(included) == [f'#include "{name}.inc"' for name in SOURCES]
    assert not list(tmp_path.glob("cpu/*.cpp"))
    clashing = ("bezier_align", "roi_align", "psamask")
    assert all(sum(name in " ".join(group) for name in clashing) <= 1 for group in groups)


PIP_METADATA_FAILURE = """\
  error: subprocess-exited-with-error
  × Preparing metadata (pyproject.toml) did not run successfully.
  │ exit code: 1
  ╰─> [20 lines of output]
      Traceback (most recent call last):
      setuptools.errors.InvalidConfigError: invalid pyproject.toml config: `project.license`.
      [end of output]
  note: This error originates from a subprocess, and is likely not a problem with pip.
error: metadata-generation-failed

× Encountered error while generating package metadata.
╰─> See above for output.

note: This is an issue with the package mentioned above, not pip.
hint: See above for details.
"""
FAILURES = {
    "metadata": (PIP_METADATA_FAILURE, ["InvalidConfigError: invalid pyproject.toml"]),
    "headers": (
        "/x/extension.h:12: fatal error: Python.h: No such file or directory\ncompilation "
        "terminated.\nerror: command '/usr/bin/g++' failed with exit code 1\n"
        "ERROR: Failed building wheel for mmcv\n",
        ["python3-dev"],
    ),
    "compiler": (
        "error: command 'g++' failed: No such file or directory: 'g++'\n",
        ["apt install g++"],
    ),
    "memory": (
        "c++: fatal error: Killed signal terminated program cc1plus\ncompilation terminated.\n"
        "ninja: build stopped: subcommand failed.\n",
        ["memory", "MAX_JOBS=1"],
    ),
    "disk": (
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n",
        ["disk is full"],
    ),
    "certificate": (
        "error: Failed to fetch: https://index/simple/attrs/\n  cause: invalid peer certificate: "
        "UnknownIssuer\n",
        ["certificate", "PIP_CERT"],
    ),
    "network": (
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'\n"
        "ERROR: Could not find a version that satisfies the requirement torch==2.11.0 (from "
        "versions: none)\nERROR: No matching distribution found for torch==2.11.0\n",
        ["package index", "network"],
    ),
    "python": (
        "ERROR: Package 'x' requires a different Python: 3.9.1 not in '>=3.10'\n",
        ["this Python"],
    ),
}


def installation(folder: Path) -> "setup.Installation":
    (folder / "venv").mkdir()
    made = setup.Installation(folder / "venv")
    made.log.write_text("an earlier step: No space left on device\n")
    return made


def logging(made: "setup.Installation", text: str, status: int = 1) -> int:
    with made.log.open("a") as log:
        log.write(text)
    return status


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failed_step_says_what_is_wrong_and_what_to_do(tmp_path, kind):
    log, named = FAILURES[kind]
    made = installation(tmp_path)
    with pytest.raises(setup.SetupError) as error:
        made.step("2/3 mmcv", lambda: logging(made, log))
    for part in ("2/3 mmcv", *named, str(made.log)):
        assert part in str(error.value)
    assert "\n" not in str(error.value) and "metadata-generation" not in str(error.value)


def test_a_download_that_breaks_off_is_tried_three_times(tmp_path):
    made = installation(tmp_path)
    results = iter([1, 1, 0])
    made.step(
        "1/3", lambda: logging(made, "ConnectionResetError: connection reset\n", next(results))
    )
    assert next(results, None) is None
    calls = []
    with pytest.raises(setup.SetupError, match="network"):
        made.step("1/3", lambda: calls.append(1) or logging(made, "Read timed out\n"))
    assert len(calls) == 3


def test_pip_does_what_uv_cannot(tmp_path):
    made = installation(tmp_path)
    made.step("1/3", lambda: logging(made, "invalid peer certificate\n"), lambda: 0)


def test_an_interrupted_set_up_is_made_anew(tmp_path, monkeypatch):
    RecordingPip(monkeypatch)
    venv = tmp_path / "venv"
    with monkeypatch.context() as broken:
        broken.setattr(
            setup.Installation, "build_mmcv", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            setup.install_stack("onedl", venv)
    (venv / "half-made").touch()
    assert (venv / ".unfinished").exists()
    setup.install_stack("onedl", venv)
    assert not (venv / ".unfinished").exists() and not (venv / "half-made").exists()


def test_a_folder_that_is_no_environment_of_ours_is_kept(tmp_path, monkeypatch):
    RecordingPip(monkeypatch)
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "mine").touch()
    setup.install_stack("onedl", tmp_path / "venv")
    assert (tmp_path / "venv" / "mine").exists()


def test_what_would_be_missed_minutes_later_is_looked_for_first(tmp_path, monkeypatch):
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * 2**30))
    with pytest.raises(setup.SetupError, match="10 GB of free disk .* has 2 GB"):
        setup.check_machine(tmp_path / "venv")
    monkeypatch.setattr(setup.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(setup.SetupError, match=r"Python\.h .* apt install python3-dev"):
        setup.check_machine(tmp_path / "venv")
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(setup.SetupError, match="no-such-compiler .* apt install g"):
        setup.check_machine(tmp_path / "venv")
    assert not (tmp_path / "venv").exists()


def set_up(tmp_path: Path, *options: str, **env: str) -> subprocess.CompletedProcess:
    """Run the set-up as on a fresh machine: no active environment, none in the usual place."""
    others = ("PIP_", "CONDA", "VIRTUAL", "PYTHON")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(others)}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    place = dict(CROSSFORMER_VENV=str(tmp_path / "venv"), PIP_CONFIG_FILE=os.devnull)
    return subprocess.run(
        ["bash", str(ROOT / "tools/run_tests.sh"), *options, "--version"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**clean, "PATH": path, **place, **env},
    )


def assert_one_line(result: subprocess.CompletedProcess, *named: str) -> None:
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    for part in named:
        assert part in result.stderr


@pytest.mark.parametrize(
    ("options", "version", "needed"),
    [((), "3.8", "3.11 or 3.12 or 3.10"), (("--stack", "openmmlab"), "3.12", "3.11 or 3.10")],
)
def test_a_wrong_python_is_named(tmp_path, options, version, needed):
    for name in ("python3", "python3.10", "python3.11", "python3.12"):
        say = f'[ "$1" = --version ] && echo "Python {version}.1" || echo {version}'
        make_command(tmp_path / "bin", name, say)
    assert_one_line(set_up(tmp_path, *options), f"Python {needed}", f"{version}.1")
    assert not (tmp_path / "venv").exists()


def test_an_unknown_stack_is_named(tmp_path):
    assert_one_line(set_up(tmp_path, "--stack", "mim"), "--stack mim", "onedl, openmmlab or newest")


def test_a_missing_network_ends_in_one_line(tmp_path):
    nowhere = dict(PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="0", UV_HTTP_RETRIES="0")
    result = set_up(tmp_path, **nowhere)
    assert_one_line(result, "1/3 PyTorch", "package index", "install.log")
    assert "attempt 3 of 3" in result.stdout


def test_ctrl_c_ends_in_one_line(tmp_path, monkeypatch):
    def interrupted(family: str, venv: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "install_stack", interrupted)
    monkeypatch.setattr(sys, "argv", ["install_stack.py", "onedl", str(tmp_path)])
    with pytest.raises(SystemExit, match="^error: interrupted; the same command"):
        setup.main()


def test_a_second_call_installs_nothing(tmp_path):
    # An interpreter that has everything, and refuses to install.
    make_command(tmp_path / "venv/bin", "python", '[ "$2" != pip ] && echo "python $*"')
    result = set_up(tmp_path)
    assert result.returncode == 0, result.stderr
    assert "pytest -n 2 --dist loadfile --version" in result.stdout
