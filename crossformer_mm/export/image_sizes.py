"""The image sizes that one exported graph is for."""

from crossformer_mm.models import CrossFormer
from crossformer_mm.models.cross_scale_embedding import CrossScaleStem

MAX_SIDE = 4096

Size = tuple[int, int]


def smallest_dynamic_side(backbone: CrossFormer) -> int:
    """The least height and width, in pixels, of a graph for images of changing size.

    From there on, every map is larger than a group. A smaller map is not split into groups of the
    usual size, which takes another graph.
    """
    strides = [CrossScaleStem.stride * 2**stage for stage in range(backbone.out_indices[-1] + 1)]
    group_sizes = backbone.arch.group_size
    return max(
        stride * max(groups) + 1 for stride, groups in zip(strides, group_sizes, strict=False)
    )


def sizes_to_try(shape: Size, smallest: int) -> list[Size]:
    """Heights and widths to compare at: the given one, turned, the smallest, and an odd one."""
    height, width = shape
    odd = (min(height + 13, MAX_SIDE), min(width + 50, MAX_SIDE))
    return list(dict.fromkeys([shape, (width, height), (smallest, smallest), odd]))


def describe_sizes(backbone: CrossFormer, dynamic: bool, shape: Size) -> str:
    """The images that a file takes, as text."""
    if not dynamic:
        return f"(1, {backbone.in_channels}, {shape[0]}, {shape[1]})"
    return f"(B, C, H, W) with sides from {smallest_dynamic_side(backbone)} to {MAX_SIDE}"
