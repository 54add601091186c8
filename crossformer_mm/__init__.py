"""CrossFormer and CrossFormer++ for mmpretrain, mmdet and mmseg.

Importing this package registers the backbone in mmengine's root registry, where the configs of
all three libraries find it as ``type='CrossFormer'``, and with it the layer-wise learning rate
decay and the check of losses; and it registers the classifiers in mmpretrain's model hub. From
then on mmengine reads checkpoints without running code in them.
"""

import sys
from importlib import import_module

from crossformer_mm.version import __version__

__all__ = ["__version__"]

# The doctor has to start where what the rest needs is missing.
if "crossformer_mm.doctor" not in sys.orig_argv:
    from crossformer_mm.utils.requirements import check_installed

    check_installed()

    from crossformer_mm.checkpoints.loader import use_safe_loader
    from crossformer_mm.datasets.transforms import CheckSegLabels
    from crossformer_mm.engine.layer_decay import CrossFormerLayerDecayConstructor
    from crossformer_mm.models import CrossFormer
    from crossformer_mm.registry import register_classifiers
    from crossformer_mm.utils.import_hooks import when_imported

    __all__ += [
        "CheckSegLabels",
        "CrossFormer",
        "CrossFormerLayerDecayConstructor",
    ]
    register_classifiers()
    use_safe_loader()
    # Hooks import OpenCV, which the backbone does not need.
    when_imported(
        "mmengine.hooks", lambda _: import_module("crossformer_mm.engine.hooks.loss_check")
    )
