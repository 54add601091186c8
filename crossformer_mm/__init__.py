"""CrossFormer and CrossFormer++ for mmpretrain, mmdet and mmseg.

Importing this package registers the backbone in mmengine's root registry, where the configs of
all three libraries find it as ``type='CrossFormer'``, and the classifiers in mmpretrain's model
hub. From then on mmengine reads checkpoints without running code in them.
"""

from crossformer_mm.requirements import check_installed
from crossformer_mm.version import __version__

check_installed()

from crossformer_mm.checkpoint_loading import use_safe_loader  # noqa: E402
from crossformer_mm.model_hub import register_classifiers  # noqa: E402
from crossformer_mm.models import CrossFormer  # noqa: E402
from crossformer_mm.transforms import CheckSegLabels  # noqa: E402

__all__ = ["CheckSegLabels", "CrossFormer", "__version__"]

register_classifiers()
use_safe_loader()
