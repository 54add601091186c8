"""CrossFormer and CrossFormer++ for mmpretrain, mmdet and mmseg.

Importing this package registers the backbone in mmengine's root registry, where the configs of
all three libraries find it as ``type='CrossFormer'``, and the classifiers in mmpretrain's model
hub.
"""

from crossformer_mm.requirements import check_installed
from crossformer_mm.version import __version__

check_installed()

from crossformer_mm.hooks import CheckpointMatchHook  # noqa: E402
from crossformer_mm.model_hub import register_classifiers  # noqa: E402
from crossformer_mm.models import CrossFormer  # noqa: E402
from crossformer_mm.transforms import CheckSegLabels  # noqa: E402

__all__ = ["CheckSegLabels", "CheckpointMatchHook", "CrossFormer", "__version__"]

register_classifiers()
