"""CrossFormer and CrossFormer++ for mmpretrain, mmdet and mmseg.

Importing this package registers the backbone in mmengine's root registry, where the configs of
all three libraries find it as ``type='CrossFormer'``.
"""

from crossformer_mm.requirements import check_installed
from crossformer_mm.version import __version__

check_installed()

from crossformer_mm.hooks import CheckpointMatchHook  # noqa: E402
from crossformer_mm.models import CrossFormer  # noqa: E402

__all__ = ["CheckpointMatchHook", "CrossFormer", "__version__"]
