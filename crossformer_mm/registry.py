"""What the libraries know of this package besides the backbone, through their own interfaces."""

import sys
from importlib.util import find_spec

from crossformer_mm.utils.index import METAFILE, find_index_root


def register_with_runner() -> None:
    """Register the hooks that configs name, and the reader of checkpoints.

    mmengine's runner imports OpenCV. Where that is missing nothing can train, but the backbone
    works alone.
    """
    if find_spec("cv2") is not None:
        from crossformer_mm.checkpoints.loader import use_safe_loader
        from crossformer_mm.engine.hooks import loss_check  # noqa: F401

        use_safe_loader()
    if "mmpretrain" in sys.modules:
        register_classifiers()


def register_classifiers() -> None:
    """Add the classifiers to mmpretrain's model hub, under the names of their configs.

    ``mmpretrain.list_models('crossformer*')`` and ``mmpretrain.get_model(NAME)`` know them then.
    Importing this package does it if mmpretrain has been imported before; it does not import
    mmpretrain, which detectors and segmentors do not need.

    Raises:
        FileNotFoundError: If the package was installed without its configs.
    """
    from mmpretrain.apis.model import ModelHub

    root = find_index_root()
    if not ModelHub.has("crossformer-small_8xb128_in1k"):  # the hub refuses a name it has
        ModelHub.register_model_index(root / METAFILE, config_prefix=root)
