"""The backbone as a program of torch.export, for images of any size."""

import torch
from torch.export import ExportedProgram

from crossformer_mm.export.errors import ExportError
from crossformer_mm.export.image_sizes import MAX_SIDE, smallest_dynamic_side
from crossformer_mm.models import CrossFormer
from crossformer_mm.models.sorted_attention import CAN_COMPILE


def image_axes(smallest: int) -> dict:
    """The batch size, height and width of an image (B, C, H, W), as dimensions of any size."""
    return {
        0: torch.export.Dim("batch", min=1),
        2: torch.export.Dim("height", min=smallest, max=MAX_SIDE),
        3: torch.export.Dim("width", min=smallest, max=MAX_SIDE),
    }


def export_backbone(backbone: CrossFormer) -> ExportedProgram:
    """Export a backbone in evaluation, for batches of any size of images of any size.

    Heights and widths are those from :func:`smallest_dynamic_side` to :data:`MAX_SIDE`. Whoever
    loads the saved program must import ``crossformer_mm``, which has the operators of attention.

    Args:
        backbone: With ``attention_path`` ``'auto'`` or ``'sdpa'``, on a CPU.

    Raises:
        ExportError: If the backbone is in training, takes another path, or PyTorch is too old.

    Examples:
        >>> program = export_backbone(CrossFormer('small').eval())  # doctest: +SKIP
        >>> torch.export.save(program, 'backbone.pt2')
        >>> maps = program.module()(torch.rand(1, 3, 256, 320))
    """
    if not CAN_COMPILE:
        raise ExportError(f"PyTorch {torch.__version__} is too old: 2.6 or newer is needed")
    if backbone.training:
        raise ExportError("the backbone is in training mode: call backbone.eval() first")
    path = backbone.layers[0].blocks[0].attn.attention_path
    if path not in ("auto", "sdpa"):
        raise ExportError(f"attention_path={path!r} is for one image size only: use 'sdpa'")
    smallest = smallest_dynamic_side(backbone)
    # Sizes that no other number in the model equals.
    image = torch.zeros(2, backbone.in_channels, smallest + 10, smallest + 36)
    with torch.no_grad():
        return torch.export.export(
            backbone, (image,), dynamic_shapes={"image": image_axes(smallest)}, strict=False
        )
