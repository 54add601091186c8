"""Packaging; see README.md for how to install."""

import re
import shutil
from pathlib import Path
from runpy import run_path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# What OpenMMLab's package manager, mim, looks for below PACKAGE/.mim
MIM_CONTENTS = ("configs", "tools", "model-index.yml")
# Not in the wheel: caches, users' own configs, and what works in a checkout only
LEFT_OUT = (
    *("__pycache__", "own", "install_stack.py", "quickstart.sh", "run_tests.sh", "setup_env.sh"),
    *("stack_versions.py", "update_model_zoo.py"),
)


class BuildWithMim(build_py):
    """Put the configs, tools and model index into the package; linked when it is editable."""

    def run(self) -> None:  # noqa: D102
        super().run()
        if self.editable_mode:
            self._link_mim(ROOT / "crossformer_mm" / ".mim")
        else:
            self._copy_mim(Path(self.build_lib) / "crossformer_mm" / ".mim")

    def _link_mim(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in MIM_CONTENTS:
            (folder / name).symlink_to(Path("..") / ".." / name)

    def _copy_mim(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in MIM_CONTENTS:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns(*LEFT_OUT)
                shutil.copytree(ROOT / name, folder / name, ignore=ignored)
            else:
                shutil.copy2(ROOT / name, folder / name)


def read_version() -> str:
    """Read the version without importing the package, which needs torch."""
    names = {}
    exec((ROOT / "crossformer_mm" / "version.py").read_text(), names)
    return names["__version__"]


def read_description() -> str:
    """The README without its pictures and links to files, which a package index does not have."""
    text = re.sub(r"^!\[.*?\]\(docs/.*?\)\n", "", (ROOT / "README.md").read_text(), flags=re.M)
    return re.sub(r"\[([^]]+)\]\((?!https?://)[^)]+\)", r"\1", text)


# Two families of packages have the same modules: neither may be a hard requirement.
STACKS = run_path(str(ROOT / "tools" / "stack_versions.py"))["STACKS"]


def family(name: str) -> list[str]:
    """The libraries of a family, and the numpy that they take."""
    stack = STACKS[name]
    numpy = [package for package in stack["base"] if package.startswith("numpy")]
    return [stack["mmcv"], *stack["libraries"], *numpy]


# What tools/export.py writes and checks files with: ONNX, OpenVINO, and quantised by NNCF.
EXPORT = [
    *("onnx>=1.18", "onnxruntime>=1.20", "onnxscript>=0.7.2"),
    *("openvino>=2025.0", "nncf>=2.16"),
]

# The page of tools/explore.py. gradio asks for a pillow below 13 itself, and takes any pandas; 3.1
# would bring numpy 2, which PyTorch 2.1 does not take.
EXPLORE = ["gradio>=6", "pandas<3"]
# playwright drives Chromium in the page's tests; mmpretrain's vis_cam.py draws with grad-cam;
# nbclient runs the tutorial, in a process of ipykernel.
TESTS = [
    *("pytest>=7.3", "pytest-xdist>=3", "hypothesis>=6.80"),
    *("playwright>=1.40", "grad-cam>=1.5"),
    *("nbclient>=0.8", "ipykernel>=6.20"),
]

# The pages as a site. Sphinx, as MkDocs has had no release since 2024; myst-nb reads Markdown and
# notebooks; furo is a theme that needs no settings. Not in dev, since no test needs them.
DOCS = ["sphinx>=8.1", "myst-nb>=1.3", "furo>=2025.9"]

setup(
    name="crossformer_mm",
    version=read_version(),
    description="CrossFormer and CrossFormer++ for mmpretrain, mmdet and mmseg",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    author="The crossformer_mm contributors",
    license="Apache-2.0",
    classifiers=[
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12)),
    ],
    packages=find_packages(include=["crossformer_mm", "crossformer_mm.*"]),
    package_data={"crossformer_mm": ["py.typed"]},
    python_requires=">=3.10,<3.13",
    install_requires=["torch>=2.1", "numpy", "safetensors>=0.4", "defusedxml>=0.7"],
    extras_require={
        "onedl": family("onedl"),
        "openmmlab": family("openmmlab"),
        "export": EXPORT,
        "explore": EXPLORE,
        "docs": DOCS,
        "release": ["build>=1.2", "twine>=6", "cffconvert>=2"],
        "dev": [*TESTS, "ruff==0.17.6", "mypy==2.4.1", "tensorboard", *EXPORT, *EXPLORE],
    },
    cmdclass={"build_py": BuildWithMim},
)
