"""The backbone as a graph that runtimes recognise: the same values, written for what they fuse.

Measured with OpenVINO and onnxruntime on CPUs:

- Tokens are rows of a matrix (N, C) wherever a map is not needed. With four axes OpenVINO reads
  them as images, takes each LayerNorm apart and changes the layout between the pieces.
- Attention has four axes (groups, heads, tokens, channels), the form whose products and softmax
  become one kernel, so that scores stay in the cache. With five axes each is a pass over memory.
- Tokens go from the map to their group and head in one transpose, and back in another one.

Position biases and masks depend on the image's size only: runtimes fold them when they load a file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossformer_mm.models.attention import GroupedAttention
from crossformer_mm.models.block import CrossFormerBlock
from crossformer_mm.models.cross_scale_embedding import CrossScaleDownsample, CrossScaleStem
from crossformer_mm.models.grouping import GroupPlan, allowed_keys, from_regions, to_regions
from crossformer_mm.models.position_bias import expand_table

# Added to the scores of padding: no weight is left, and float16 and bfloat16 can hold it.
MASKED = -3e4


@contextmanager
def fast_graph(model: nn.Module) -> Iterator[None]:
    """Within the block, CrossFormer backbones inside ``model`` are traced as a faster graph.

    For a model in evaluation mode, and for export: run as it is, PyTorch is slower with it. Nothing
    is left behind, and no parameter or buffer is touched.

    Args:
        model: A backbone, or any module that contains some.

    Examples:
        >>> with fast_graph(model), torch.no_grad():
        ...     program = torch.onnx.export(model, (image,), dynamo=True)
    """
    changed = [module for module in model.modules() if type(module) in FORWARDS]
    try:
        for module in changed:
            module.forward = partial(FORWARDS[type(module)], module)
        yield
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


def _stem(stem: CrossScaleStem, image: Tensor) -> Tensor:
    return stem.pos_embed(_on_rows(stem.norm, stem.projs(image)))


def _downsample(layer: CrossScaleDownsample, x: Tensor) -> Tensor:
    return layer.reductions(_on_rows(layer.norm, x).permute(0, 3, 1, 2))


def _block(block: CrossFormerBlock, x: Tensor) -> Tensor:
    shape = x.shape
    x = x.reshape(-1, shape[-1])
    if block.long_range == "pvt":
        x = x + block.attn(block.norm1(x).view(shape)).reshape(x.shape)
    else:
        x = x + _attention(block.attn, block.norm1(x), block.plan(*shape[1:3]))
    x = x + block.mlp(block.norm2(x))
    if block.amplitude_cooling:
        x = block.ex_conv(x.view(shape).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = block.ex_ln(x.reshape(-1, shape[-1]))
    return x.view(shape)


def _attention(attn: GroupedAttention, x: Tensor, plan: GroupPlan) -> Tensor:
    """Attend within groups: rows (B * H * W, C) -> (B * H * W, C)."""
    head_dims = x.shape[1] // attn.num_heads
    (rows, columns), step = plan.regions, plan.interval
    sides = (plan.group_height, plan.group_width)
    x = to_regions(x.view(-1, plan.height, plan.width, x.shape[1]), plan)
    # The scale of the scores is in the weights, which saves a pass over q.
    scale = attn.qkv.bias.new_tensor([head_dims**-0.5, 1, 1]).repeat_interleave(x.shape[-1])
    weight, bias = attn.qkv.weight * scale[:, None], attn.qkv.bias * scale
    qkv = F.linear(x.view(-1, x.shape[-1]), weight, bias)
    qkv = qkv.view(-1, rows, sides[0], step, columns, sides[1], step, 3, attn.num_heads, head_dims)
    # (3, B, region y, offset y, region x, offset x, heads, member y, member x, C / heads)
    qkv = qkv.permute(7, 0, 1, 3, 4, 6, 8, 2, 5, 9)
    q, k, v = qkv.reshape(3, -1, attn.num_heads, sides[0] * sides[1], head_dims)
    scores = q @ k.transpose(-2, -1) + expand_table(attn.bias_table(plan, x))
    allowed = allowed_keys(plan, x.device)
    if allowed is not None:
        mask = torch.zeros_like(allowed, dtype=x.dtype).masked_fill(~allowed, MASKED)
        scores = scores + mask.repeat(len(x), 1, 1)[:, None]
    x = (scores.softmax(dim=-1) @ v).view(
        -1, rows, step, columns, step, attn.num_heads, *sides, head_dims
    )
    x = x.permute(0, 1, 6, 2, 3, 7, 4, 5, 8)
    x = x.reshape(-1, *plan.padded_size, attn.proj.in_features)
    return attn.proj(from_regions(x, plan).reshape(-1, attn.proj.in_features))


def _on_rows(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return norm(x.reshape(-1, x.shape[-1])).view(x.shape)


FORWARDS = {
    CrossScaleStem: _stem,
    CrossScaleDownsample: _downsample,
    CrossFormerBlock: _block,
}
