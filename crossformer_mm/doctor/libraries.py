"""Which libraries are installed, and whether they can be imported."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from crossformer_mm.doctor.findings import Finding, attempt
from crossformer_mm.utils.requirements import HOW_TO_INSTALL, check_installed

# The distributions that provide the modules, in either family
FAMILIES = {
    "onedl": {
        "mmengine": "onedl-mmengine",
        "mmcv": "onedl-mmcv",
        "mmpretrain": "onedl-mmpretrain",
        "mmdet": "onedl-mmdetection",
        "mmseg": "onedl-mmsegmentation",
    },
    "openmmlab": {
        "mmengine": "mmengine",
        "mmcv": "mmcv",
        "mmpretrain": "mmpretrain",
        "mmdet": "mmdet",
        "mmseg": "mmsegmentation",
    },
}
# Where mmpretrain, mmdet and mmseg have what their configs name, and import the rest from.
PARTS = ("models", "datasets", "engine", "evaluation", "visualization")
BROKEN = f"it is broken, or does not fit the others: in a new environment, {HOW_TO_INSTALL}"
COMPILE_MMCV = (
    "its operators do not fit this torch or GPU; compile them here: "
    "pip install --no-build-isolation --no-binary :all: --force-reinstall --no-deps"
)


def import_numpy() -> Finding:
    """The version of numpy, which torch and all libraries import."""
    missing = "pip install 'torch>=2.1' 'numpy>=2.1,<2.3' for onedl, 'numpy<2' for openmmlab"
    return _import("numpy", missing, _same_again("numpy"))


def import_torch() -> Finding:
    """The version of torch."""
    return _import("torch", "pip install 'torch>=2.1'", _same_again("torch"))


def _same_again(distribution: str) -> str:
    number = (version_of(distribution) or "VERSION").partition("+")[0]
    return f"pip install --force-reinstall --no-deps {distribution}=={number}"


def import_opencv() -> Finding:
    """The version of OpenCV, which often lacks a library of the system."""
    headless = "opencv-python-headless, which needs no graphics libraries"
    return _import("cv2", HOW_TO_INSTALL, f"replace opencv-python by {headless}")


def import_mmengine() -> Finding:
    """Whether mmengine's runner can be imported."""
    return _import("mmengine", HOW_TO_INSTALL, BROKEN, part="runner")


def import_mmcv() -> Finding:
    """Whether mmcv can be imported, without its operators."""
    return _import("mmcv", f"every task needs it: {HOW_TO_INSTALL}", BROKEN)


def _import(name: str, missing: str, broken: str, part: str | None = None) -> Finding:
    """Import a module, and one of its parts; the advice is ``missing`` or ``broken``."""
    if find_spec(name) is None:
        return Finding(name, "not installed", missing, stops_training=True)

    def load() -> str:
        module = import_module(name)
        if part:
            import_module(f"{name}.{part}")
        return module.__version__

    return attempt(name, load, broken)


def find_family() -> Finding:
    """Which family's distributions are installed; two at once spoil each other."""
    found = {
        family: {module: number for module, name in names.items() if (number := version_of(name))}
        for family, names in FAMILIES.items()
    }
    found = {family: versions for family, versions in found.items() if versions}
    text = " and ".join(
        f"{family}: {', '.join(f'{module} {number}' for module, number in versions.items())}"
        for family, versions in found.items()
    )
    if len(found) > 1:
        advice = f"remove all libraries of both families, then {HOW_TO_INSTALL}"
        return Finding("family", text, advice, stops_training=True)
    try:
        check_installed()
    except ImportError as error:
        return Finding("family", text or "none", str(error), stops_training=True)
    return Finding("family", text or "unknown")


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def run_mmcv_operator() -> Finding:
    """Whether mmcv's operators load and run, on the GPU too if there is one."""
    installed = [
        f"{names['mmcv']}=={number}"
        for names in FAMILIES.values()
        if (number := version_of(names["mmcv"]))
    ]
    return attempt("mmcv ops", _suppress_boxes, " ".join([COMPILE_MMCV, *installed]))


def _suppress_boxes() -> str:
    import torch
    from mmcv.ops import nms

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        box = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device)
        nms(box, torch.ones(1, device=device), 0.5)
    return f"load and run on {' and '.join(devices)}"


def import_library(name: str) -> Finding:
    """Whether what training needs of mmpretrain, mmdet or mmseg can be imported."""
    if find_spec(name) is None:
        return Finding(name, "not installed", HOW_TO_INSTALL, stops_training=True)

    def load() -> str:
        for part in PARTS:
            import_module(f"{name}.{part}")
        return "can be imported"

    return attempt(name, load, BROKEN)
