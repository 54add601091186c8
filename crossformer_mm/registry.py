"""Make the classifiers known to mmpretrain by name, once mmpretrain is imported.

The backbone works without mmpretrain, so this package does not import it. It waits until someone
does: then ``mmpretrain.list_models('crossformer*')`` and ``mmpretrain.get_model(NAME)`` know the
classification configs. Detectors and segmentors are not mmpretrain's to build.
"""

import warnings
from pathlib import Path
from types import ModuleType

from crossformer_mm.utils.import_hooks import when_imported

HUB_MODULE = "mmpretrain.apis.model"
METAFILE = Path("configs/classification/metafile.yml")
PACKAGE = Path(__file__).parent


def register_classifiers() -> None:
    """Add the classifiers to mmpretrain's hub, now or when mmpretrain is imported."""
    when_imported(HUB_MODULE, _add_to_hub)


def find_index_root() -> Path | None:
    """Find the folder that has ``configs``: in the installed package, or around its source."""
    for root in (PACKAGE / ".mim", PACKAGE.parent):
        if (root / METAFILE).is_file():
            return root
    return None


def _add_to_hub(module: ModuleType) -> None:
    root = find_index_root()
    if root is None:
        warnings.warn(
            f"crossformer_mm: {METAFILE} is neither in {PACKAGE}/.mim nor beside the package, so "
            "mmpretrain does not know the models by name; install the package again",
            stacklevel=2,
        )
    elif not module.ModelHub.has("crossformer-small_8xb128_in1k"):
        # The hub raises when a name is registered again.
        module.ModelHub.register_model_index(root / METAFILE, config_prefix=root)
