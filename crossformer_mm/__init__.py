"""CrossFormer and CrossFormer++ for mmpretrain, mmdet and mmseg.

Importing this package registers, in mmengine's root registries, what the configs of all three
libraries name: the backbone, layer-wise learning rate decay, the checks of losses and of label
maps. From then on mmengine reads checkpoints without running code in them.
"""

from crossformer_mm.utils.requirements import check_installed
from crossformer_mm.version import __version__

check_installed()  # says what to install, where the imports below would only fail

from crossformer_mm.datasets.transforms import CheckSegLabels  # noqa: E402
from crossformer_mm.engine.layer_decay import CrossFormerLayerDecayConstructor  # noqa: E402
from crossformer_mm.models import CrossFormer  # noqa: E402
from crossformer_mm.registry import register_classifiers, register_with_runner  # noqa: E402

__all__ = [
    "CheckSegLabels",
    "CrossFormer",
    "CrossFormerLayerDecayConstructor",
    "__version__",
    "register_classifiers",
]

register_with_runner()
