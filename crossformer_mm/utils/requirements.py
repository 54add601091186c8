"""Check the OpenMMLab libraries that are installed, and say what to install.

Two families of packages provide the same modules, and installing one over the other breaks both.
So the package requires neither: what is there is checked when it is imported.
"""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

# The oldest versions with the 2.x interfaces: root registry, config inheritance, data elements.
MINIMUM_VERSIONS = dict(mmengine=(0, 8, 0), mmdet=(3, 0, 0), mmseg=(1, 0, 0), mmpretrain=(1, 0, 0))

HOW_TO_INSTALL = (
    "install one family of the libraries, never one over the other: "
    "pip install --no-build-isolation 'crossformer_mm[onedl]' (maintained) "
    "or 'crossformer_mm[openmmlab]' (original)"
)


def check_installed() -> None:
    """Raise ImportError if mmengine is missing, or a library is older than its minimum."""
    needs = "crossformer_mm needs"
    if find_spec("mmengine") is None:
        raise ImportError(f"{needs} mmengine, which is not installed: {HOW_TO_INSTALL}")
    for module, minimum in MINIMUM_VERSIONS.items():
        version = installed_version(module)
        if version and tuple(map(int, re.findall(r"\d+", version)[:3])) < minimum:
            newer = f"{module} {'.'.join(map(str, minimum))} or newer"
            raise ImportError(f"{needs} {newer}, but {version} is installed: {HOW_TO_INSTALL}")


def installed_version(module: str) -> str | None:
    """Return a module's version without importing it, or None if it is not installed."""
    if module in sys.modules:
        return getattr(sys.modules[module], "__version__", None)
    spec = find_spec(module)
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    text = file.read_text() if file and file.is_file() else ""
    found = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    return found[1] if found else None
