"""Parameters and multiply-adds of a config's model, counted as the published tables count them.

Counted are convolutions, linear layers and the two matrix products of attention, and with one or
two operations per element ReLU and norms. Linear layers and attention include the padding of
groups, as in the authors' code; this project's own attention does not spend them. RoI heads run on
1000 boxes and 100 masks, and of a segmentor's auxiliary head only the parameters count.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from crossformer_mm.models.attention import GroupedAttention
from crossformer_mm.models.attention.reduced import ReducedAttention
from crossformer_mm.models.grouping import GroupPlan
from crossformer_mm.utils.errors import one_line

DEFAULT_SHAPES = {"mmpretrain": (224, 224), "mmdet": (1280, 800), "mmseg": (1024, 1024)}
ROI_INPUTS = {"bbox": 1000, "mask": 100}
COUNTED_PARTS = ("backbone", "neck", "head", "decode_head", "rpn_head", "bbox_head", "roi_head")
NOT_COUNTED_IN_FLOPS = "auxiliary_head"  # runs in training only
OPERATIONS_PER_ELEMENT = {nn.LayerNorm: 2, nn.GroupNorm: 2, _BatchNorm: 2, nn.ReLU: 1}


@dataclass
class Complexity:
    """Size and cost of a model, in all and by part (``'backbone'``, ``'neck'``, ...).

    ``padding`` is the share of the FLOPs that is spent on padding of groups.
    """

    params_of: dict[str, int]
    flops_of: dict[str, int] = field(default_factory=dict)
    padding: int = 0

    @property
    def params(self) -> int:
        """Number of parameters of the whole model."""
        return sum(self.params_of.values())

    @property
    def flops(self) -> int:
        """Multiply-adds of the whole model for one image."""
        return sum(self.flops_of.values())


def measure(model: nn.Module, shape: Sequence[int], channels: int = 3) -> Complexity:
    """Count the parameters of a model, and its multiply-adds for one image.

    Args:
        model: A classifier, detector or segmentor on the meta device.
        shape: Height and width of the image, in pixels.
        channels: Channels of the image.

    Raises:
        ValueError: If the model has parts that cannot be counted, such as DETR's transformer; the
            message names them.
    """
    complexity = Complexity(_params_of(model))
    _refuse(model, set(complexity.params_of) - {*COUNTED_PARTS, NOT_COUNTED_IN_FLOPS})
    inputs = torch.empty(1, channels, *shape, device="meta")
    with torch.no_grad(), OperationCounter(model) as counter:
        for name in COUNTED_PARTS:
            part = getattr(model, name, None)
            if not isinstance(part, nn.Module):
                continue
            if name == "roi_head":
                children = {f"roi_head.{child}" for child in _params_of(part)}
                _refuse(model, children - {"roi_head.bbox_head", "roi_head.mask_head"})
            try:
                outputs = _run_roi_head(part) if name == "roi_head" else part(inputs)
            except Exception as error:  # heads that need more, such as Mask2Former's
                _refuse(model, [name], f": {one_line(str(error))}")
            complexity.flops_of[name] = counter.take()
            inputs = outputs if name in ("backbone", "neck") else inputs
        complexity.padding = counter.padding
    return complexity


def _refuse(model: nn.Module, names: Collection[str], reason: str = "") -> None:
    """Raise an error that names the parts of a model that cannot be counted, if there are any."""
    parts = [(name, model.get_submodule(name)) for name in sorted(names)]
    sizes = [f"{name} ({type(p).__name__}, {_count(p) / 1e6:.2f} M)" for name, p in parts]
    if parts:
        raise ValueError(
            f"the FLOPs of {type(model).__name__} cannot be counted, for these parts do not run on "
            f"feature maps alone: {', '.join(sizes)}{reason}"
        )


def _params_of(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each child that has some."""
    return {name: _count(part) for name, part in model.named_children() if _count(part)}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _run_roi_head(roi_head: nn.Module) -> None:
    """Run all box heads on 1000 boxes, all mask heads on 100; cascades have several of each."""
    for kind, count in ROI_INPUTS.items():
        heads = getattr(roi_head, f"{kind}_head", None) or ()
        extractors = getattr(roi_head, f"{kind}_roi_extractor", None) or ()
        for head, extractor in zip(_as_list(heads), _as_list(extractors), strict=True):
            size = extractor.roi_layers[0].output_size
            head(torch.empty(count, extractor.out_channels, *size, device="meta"))


def _as_list(modules: nn.Module | Sequence[nn.Module]) -> Sequence[nn.Module]:
    return modules if isinstance(modules, (tuple, nn.ModuleList)) else [modules]


class OperationCounter(FlopCounterMode):
    """Counts multiply-adds while it is entered.

    Whatever way a grouped attention computes, what counts is the textbook one: it pads, projects
    every token of the padded map, and multiplies matrices.

    Args:
        model: The model that will run, changed to compute attention in the textbook way.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(display=False)
        self.padding = 0
        self._elementwise = 0
        self._taken = 0
        for module in model.modules():
            if isinstance(module, (GroupedAttention, ReducedAttention)):
                module.attn_backend = "eager"
            if isinstance(module, GroupedAttention):
                module.register_forward_pre_hook(self._note_padding)
            for kind, operations in OPERATIONS_PER_ELEMENT.items():
                if isinstance(module, kind):
                    module.register_forward_hook(partial(self._add_elementwise, operations))

    def take(self) -> int:
        """Return the multiply-adds since the last call."""
        # FlopCounterMode counts a multiplication and an addition as two.
        total = self.get_total_flops() // 2 + self._elementwise
        since_last, self._taken = total - self._taken, total
        return since_last

    def _note_padding(self, attention: GroupedAttention, inputs: tuple[Tensor, GroupPlan]) -> None:
        """Note what the four C x C projections do to padded tokens."""
        x, plan = inputs
        height, width = plan.padded_size
        padded_tokens = height * width - plan.height * plan.width
        self.padding += 4 * x.shape[-1] ** 2 * padded_tokens * x.shape[0]

    def _add_elementwise(self, operations: int, module: nn.Module, inputs: tuple, out: Tensor):
        self._elementwise += operations * out.numel()
