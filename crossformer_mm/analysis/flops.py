"""Parameters and multiply-adds of a config's model, counted as the published tables count them.

Counted are convolutions, linear layers and the two matrix products of attention, and with one or
two operations per element ReLU and norms. Linear layers and attention include the padding of
groups, as in the authors' code; this project's own attention does not spend them. RoI heads run on
1000 boxes and 100 masks, and of a segmentor's auxiliary head only the parameters count.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from crossformer_mm.models.attention import GroupedAttention
from crossformer_mm.models.grouping import GroupPlan

DEFAULT_SHAPES = {"mmpretrain": (224, 224), "mmdet": (1280, 800), "mmseg": (1024, 1024)}
NUM_BOXES = 1000
NUM_MASKS = 100
HEADS = ("head", "decode_head", "rpn_head", "bbox_head")
COUNTED_PARTS = ("backbone", "neck", *HEADS, "roi_head")
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
    params_of = {name: _count_parameters(part) for name, part in _named_parts(model)}
    _refuse(model, set(params_of) - {*COUNTED_PARTS, NOT_COUNTED_IN_FLOPS})
    complexity = Complexity(params_of)
    image = torch.empty(1, channels, *shape, device="meta")
    with torch.no_grad(), OperationCounter(model) as counter:

        def run(name: str, function: Callable, *inputs: object) -> object:
            output = function(*inputs)
            complexity.flops_of[name] = counter.take()
            return output

        maps = run("backbone", model.backbone, image)
        complexity.padding = counter.padding
        if _has(model, "neck"):
            maps = run("neck", model.neck, maps)
        for name in HEADS:
            if _has(model, name):
                with _refusing(model, name):
                    run(name, getattr(model, name), maps)
        if _has(model, "roi_head"):
            parts = {f"roi_head.{name}" for name, _ in _named_parts(model.roi_head)}
            _refuse(model, parts - {"roi_head.bbox_head", "roi_head.mask_head"})
            with _refusing(model, "roi_head"):
                run("roi_head", _run_roi_head, model.roi_head)
    return complexity


def _refuse(model: nn.Module, names: Collection[str], reason: str = "") -> None:
    """Raise an error that names the parts of a model that cannot be counted, if there are any."""
    if names:
        parts = [(name, model.get_submodule(name)) for name in sorted(names)]
        sizes = [f"{n} ({type(p).__name__}, {_count_parameters(p) / 1e6:.2f} M)" for n, p in parts]
        raise ValueError(
            f"the FLOPs of {type(model).__name__} cannot be counted, for these parts do not run on "
            f"feature maps alone: {', '.join(sizes)}{reason}"
        )


@contextmanager
def _refusing(model: nn.Module, name: str) -> Iterator[None]:
    """Refuse a part that needs more than feature maps, as the heads of Mask2Former do."""
    try:
        yield
    except Exception as error:
        _refuse(model, [name], f": {str(error).splitlines()[0] if str(error) else error!r}")


def _has(module: nn.Module, name: str) -> bool:
    return isinstance(getattr(module, name, None), nn.Module)


def _named_parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model's children that have parameters."""
    return [(name, part) for name, part in model.named_children() if _count_parameters(part)]


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _run_roi_head(roi_head: nn.Module) -> None:
    """Run all box heads on 1000 boxes, all mask heads on 100; cascades have several of each."""
    for kind, count in (("bbox", NUM_BOXES), ("mask", NUM_MASKS)):
        if not _has(roi_head, f"{kind}_head"):
            continue
        heads = _as_list(getattr(roi_head, f"{kind}_head"))
        extractors = _as_list(getattr(roi_head, f"{kind}_roi_extractor"))
        for head, extractor in zip(heads, extractors, strict=True):
            size = extractor.roi_layers[0].output_size
            head(torch.empty(count, extractor.out_channels, *size, device="meta"))


def _as_list(modules: nn.Module) -> Sequence[nn.Module]:
    return modules if isinstance(modules, nn.ModuleList) else [modules]


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
            if isinstance(module, GroupedAttention):
                module.attn_backend = "eager"
                module.register_forward_pre_hook(self._note_padding)
            for kind, operations in OPERATIONS_PER_ELEMENT.items():
                if isinstance(module, kind):
                    module.register_forward_hook(self._add_elementwise(operations))

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

    def _add_elementwise(self, operations: int) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            self._elementwise += operations * output.numel()

        return hook
