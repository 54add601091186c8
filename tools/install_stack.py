"""Installs PyTorch, one family of the OpenMMLab libraries and this project into a new environment.

python tools/install_stack.py onedl .venv

Needs Python's standard library only, of the Python that the environment is to have. Downloads go
through uv, which unpacks in parallel, and through pip where uv fails.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from stack_versions import STACKS

ROOT = Path(__file__).resolve().parents[1]
NEEDED_GB = 10
NETWORK = "the package index cannot be reached: is there a network, and HTTPS_PROXY where needed?"
# What a step's log says -> the likely cause and what to do.
CAUSES = {
    r"no space left on device|disk quota exceeded": f"the disk is full; {NEEDED_GB} GB are needed",
    r"killed signal|cc1plus.*killed|memory exhausted|cannot allocate memory|MemoryError|"
    r"exit status: -9": "the memory is too small; compile with MAX_JOBS=1, or add swap",
    r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate|UnknownIssuer": "a certificate is not "
    "trusted; behind a proxy, set PIP_CERT and SSL_CERT_FILE to the file with its certificate",
    r"Python\.h: No such file": "Python's headers are missing; on Debian: apt install python3-dev",
    r"ensurepip|No module named venv": "Python's venv is missing; on Debian: apt install "
    "python3-venv",
    r"requires a different python|requires-python": "this Python is not one that the package takes",
    r"(g\+\+|gcc|c\+\+|cc1plus).{0,20}(not found|no such file)|unable to execute": "a C++ compiler "
    "is needed; on Debian: apt install g++",
    r"error sending request|connection (refused|reset|broken|aborted)|name resolution|timed out|"
    r"NewConnectionError|ProxyError|IncompleteRead|incomplete download|from versions: none|"
    r"failed to (download|fetch)|network is unreachable|dns error": NETWORK,
}
ERROR = re.compile(r"error|fatal|killed|no such file|no space|not found|cause:", re.I)
# What pip and uv say after the error itself.
EPILOGUE = re.compile(
    r"subprocess-exited|metadata-generation|wheel-build|Encountered error while|exit code:|"
    r"^\s*(note|hint):|Failed (to build|building)|Could not build|No matching distribution|^\W*$"
)


class SetupError(Exception):
    """The set-up cannot go on; the message says why and what to do."""


class Installation:
    """An environment that is being filled, step by step, with one log for all steps."""

    def __init__(self, venv: Path) -> None:
        self.venv, self.log, self.python = venv, venv / "install.log", str(venv / "bin/python")
        self.unfinished = venv / ".unfinished"  # exists until the environment is complete

    def create(self) -> None:
        """Make the environment, anew if an earlier set-up was interrupted."""
        if self.unfinished.exists():
            shutil.rmtree(self.venv)
        self.venv.mkdir(parents=True, exist_ok=True)
        self.unfinished.touch()
        self.log.write_text("")
        command = [sys.executable, "-m", "venv", str(self.venv)]
        self.step(f"A new environment; {self.log} says more", lambda: self.run_once(command))

    def run_once(self, command: list[str], **env: str) -> int:
        """Run a command with its output in the log, and return its exit status."""
        with self.log.open("a") as log:
            print("$", *command, file=log, flush=True)
            streams = dict(stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
            status = subprocess.run(command, env={**os.environ, **env}, **streams).returncode
            if status < 0:
                print("exit status:", status, file=log)
        return status

    def step(self, title: str, *ways: Callable[[], int]) -> None:
        """Do a step in the first way that succeeds; try twice again if the network broke off."""
        print(f"==> {title}", flush=True)
        for _ in range(3):
            begin = self.log.stat().st_size
            if any(way() == 0 for way in ways):
                return
            cause, reason = self.explain(begin)
            if cause != NETWORK:
                break
            print("    the download broke off", flush=True)
        raise SetupError(f"{title}: {f'{cause} ({reason})' if cause else reason} (log: {self.log})")

    def explain(self, begin: int) -> tuple[str | None, str]:
        """From the log after a position: the likely cause, or None, and the last error."""
        text = self.log.read_bytes()[begin:].decode(errors="replace")
        cause = next((c for sign, c in CAUSES.items() if re.search(sign, text, re.I)), None)
        told = [line.strip() for line in text.splitlines() if not EPILOGUE.search(line)]
        errors = [line for line in told if ERROR.search(line)]
        return cause, (errors or told)[-1][:300]

    def install(self, title: str, *packages: str) -> None:
        """Install packages, as one step: with uv, or else with pip."""
        options = ["install", "--no-build-isolation", *packages]
        uv = [self.python, "-m", "uv", "pip", *options, "--python", self.python]
        # The system's certificates are those that a proxy's is among. uv does not read pip's index.
        env = dict(UV_SYSTEM_CERTS="1")
        if index := os.environ.get("PIP_INDEX_URL"):
            env["UV_DEFAULT_INDEX"] = index
        self.step(title, lambda: self.run_once(uv, **env), lambda: self.pip(*options))

    def pip(self, *arguments: str, **env: str) -> int:
        """Run pip."""
        pip = [self.python, "-m", "pip", "--disable-pip-version-check"]
        return self.run_once([*pip, *arguments], **env)

    def build_mmcv(self, requirement: str, standard: str) -> int:
        """Compile mmcv's operators, in groups of source files, and install it."""
        options = ["--no-deps", "--no-build-isolation"]
        source = ["--no-binary", requirement.split("==")[0], requirement]
        with TemporaryDirectory(dir=self.venv) as folder:
            if status := self.pip("download", *options, *source, "--dest", folder):
                return status
            (archive,) = Path(folder).glob("*.tar.gz")
            shutil.unpack_archive(archive, folder)
            (setup,) = Path(folder).glob("*/setup.py")
            setup.write_text(setup.read_text().replace("-std=c++17", f"-std={standard}"))
            group_sources(setup.parent / "mmcv/ops/csrc/pytorch", max(4, os.cpu_count() or 1))
            # The default of -O3 -g is slower to compile, and the files are far larger.
            flags = os.environ.get("CFLAGS", "-O2 -g0")
            options += ["-v", "--check-build-dependencies", str(setup.parent)]
            return self.pip("install", *options, CFLAGS=flags)


def group_sources(folder: Path, groups: int) -> None:
    """Let the compiler take mmcv's C++ files in groups, to read PyTorch's headers once for each.

    A few define the same helpers as others do: as neighbours in the list they are in different
    groups, and the one with macros, which is last in the list, is last in its group.
    """
    clash = ["bezier_align", "roi_align", "roi_align_rotated", "rotated_feature_align", "psamask"]
    helpers = {file.stem: file for file in sorted(folder.glob("cpu/*.cpp"))}
    last = [helpers.pop(name) for name in clash if name in helpers]
    files = [*sorted(folder.glob("*.cpp")), *helpers.values(), *last]
    for number in range(groups):
        included = [file.rename(file.with_suffix(".inc")) for file in files[number::groups]]
        lines = [f'#include "{file.relative_to(folder)}"\n' for file in included]
        (folder / f"group_{number}.cpp").write_text("".join(lines))


def check_machine(venv: Path) -> None:
    """Raise SetupError where something is missing that would be noticed only minutes later."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    headers = Path(sysconfig.get_path("include"), "Python.h")
    needs_nvcc = shutil.which("nvidia-smi") and not os.environ.get("CUDA_HOME")
    place = next(path for path in (venv, *venv.parents) if path.exists())
    free = shutil.disk_usage(place).free // 2**30
    needed = {
        f"a C++ compiler: {compiler} is none (on Debian: apt install g++)": shutil.which(compiler),
        f"Python.h of {sys.executable} (on Debian: apt install python3-dev)": headers.exists(),
        "nvcc for this GPU (install the CUDA toolkit)": not needs_nvcc or shutil.which("nvcc"),
        f"{NEEDED_GB} GB of free disk in {place}, which has {free} GB": free >= NEEDED_GB,
    }
    for what, is_there in needed.items():
        if not is_there:
            raise SetupError(f"the set-up needs {what}")


def install_stack(family: str, venv: Path) -> None:
    """Install everything; raises SetupError with what is wrong."""
    stack = STACKS[family]
    check_machine(venv)
    new = Installation(venv)
    new.create()
    new.pip("install", "uv")  # where this fails, so will uv, and pip is next
    new.install("1/3 PyTorch (5 GB)", *stack["torch"], *stack["base"])
    new.step(
        "2/3 mmcv (compiles its operators: a minute or two on 2 cores)",
        lambda: new.build_mmcv(stack["mmcv"], stack.get("c++", "c++17")),
    )
    new.install("3/3 mmdet, mmseg, mmpretrain", "-e", f"{ROOT}[{stack['extra']},dev]")
    new.unfinished.unlink()


def main() -> None:
    """Install, or end with one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=STACKS)
    parser.add_argument("venv", type=lambda path: Path(path).absolute())
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        install_stack(args.family, args.venv)
    except KeyboardInterrupt:
        sys.exit("error: interrupted; the same command begins the set-up again")
    except (SetupError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
