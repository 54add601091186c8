"""Make the classifiers known to mmpretrain by name, once mmpretrain is imported.

The backbone works without mmpretrain, so this package does not import it. It waits until someone
does: then ``mmpretrain.list_models('crossformer*')`` and ``mmpretrain.get_model(NAME)`` know the
classification configs. Detectors and segmentors are not mmpretrain's to build.
"""

import sys
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

HUB_MODULE = "mmpretrain.apis.model"
METAFILE = Path("configs/classification/metafile.yml")
PACKAGE = Path(__file__).parent


def register_classifiers() -> None:
    """Add the classifiers to mmpretrain's hub, now or when mmpretrain is imported."""
    if HUB_MODULE in sys.modules:
        _add_to_hub(sys.modules[HUB_MODULE])
    elif not any(isinstance(finder, _HubFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _HubFinder())


def find_index_root() -> Path | None:
    """Find the folder that has ``configs``: in the installed package, or around its source."""
    for root in (PACKAGE / ".mim", PACKAGE.parent):
        if (root / METAFILE).is_file():
            return root
    return None


class _HubFinder:
    """Finds mmpretrain's hub as Python itself does, and has it filled after it was executed."""

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != HUB_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_fill(module: ModuleType) -> None:
                execute(module)
                _add_to_hub(module)

            spec.loader.exec_module = execute_and_fill
        return spec


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
