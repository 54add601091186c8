"""Packaging; see README.md for how to install."""

import shutil
from pathlib import Path
from runpy import run_path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# What OpenMMLab's package manager, mim, looks for below PACKAGE/.mim
MIM_CONTENTS = ("configs", "tools", "model-index.yml")


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
                ignored = shutil.ignore_patterns("__pycache__", "own")  # own: users' configs
                shutil.copytree(ROOT / name, folder / name, ignore=ignored)
            else:
                shutil.copy2(ROOT / name, folder / name)


def read_version() -> str:
    """Read the version without importing the package, which needs torch."""
    names = {}
    exec((ROOT / "crossformer_mm" / "version.py").read_text(), names)
    return names["__version__"]


# Two families of packages have the same modules: neither may be a hard requirement.
STACKS = run_path(str(ROOT / "tools" / "stack_versions.py"))["STACKS"]


def family(name: str) -> list[str]:
    """The libraries of a family, and the numpy that they take."""
    stack = STACKS[name]
    numpy = [package for package in stack["base"] if package.startswith("numpy")]
    return [stack["mmcv"], *stack["libraries"], *numpy]


# What tools/export.py writes and checks files with: ONNX, OpenVINO, and quantised by NNCF.
EXPORT = [
    *("onnx>=1.18", "onnxruntime>=1.20", "onnxscript>=0.5"),
    *("openvino>=2025.0", "nncf>=2.16"),
]

# The page of tools/explore.py. gradio asks for a pillow below 13 itself, and takes any pandas; 3.1
# would bring numpy 2, which PyTorch 2.1 does not take.
EXPLORE = ["gradio>=6", "pandas<3"]
# playwright drives Chromium in the page's tests; mmpretrain's vis_cam.py draws with grad-cam.
TESTS = [
    *("pytest>=7.3", "pytest-xdist>=3", "hypothesis>=6.80"),
    *("playwright>=1.40", "grad-cam>=1.5"),
]

setup(
    name="crossformer_mm",
    version=read_version(),
    description="CrossFormer and CrossFormer++ for mmpretrain, mmdet and mmseg",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["crossformer_mm", "crossformer_mm.*"]),
    python_requires=">=3.10,<3.13",
    install_requires=["torch>=2.1", "numpy", "safetensors>=0.4", "defusedxml>=0.7"],
    extras_require={
        "onedl": family("onedl"),
        "openmmlab": family("openmmlab"),
        "export": EXPORT,
        "explore": EXPLORE,
        "dev": [*TESTS, "ruff==0.17.6", "mypy==2.4.1", "tensorboard", *EXPORT, *EXPLORE],
    },
    cmdclass={"build_py": BuildWithMim},
)
