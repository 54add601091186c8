"""The CrossFormer backbone and its parts: needs torch and mmengine only."""

from crossformer_mm.models.attention import ATTN_BACKENDS, GroupedAttention, choose_backend
from crossformer_mm.models.block import CrossFormerBlock
from crossformer_mm.models.cross_scale_embedding import CrossScaleDownsample, CrossScaleStem
from crossformer_mm.models.crossformer import CrossFormer
from crossformer_mm.models.grouping import LDA_MODES
from crossformer_mm.models.position_bias import DynamicPositionBias

__all__ = [
    "ATTN_BACKENDS",
    "LDA_MODES",
    "CrossFormer",
    "CrossFormerBlock",
    "CrossScaleDownsample",
    "CrossScaleStem",
    "DynamicPositionBias",
    "GroupedAttention",
    "choose_backend",
]
