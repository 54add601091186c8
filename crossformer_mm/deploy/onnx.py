"""Write a model as an ONNX file, which is kept only if it computes what PyTorch computes.

Exported is the part that is one graph of tensors: no boxes are decoded, sorted or cropped.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

import torch
from mmengine.config import Config
from torch import Tensor, nn

from crossformer_mm.engine.config import find_preprocessor
from crossformer_mm.utils.io import atomic_write

INPUT = "image"
# Float32 and another order of sums make 1e-6 or so.
TOLERANCE = 1e-4
# The one head that is exported: of a classifier, segmentor, two-stage and one-stage detector.
HEADS = ("head", "decode_head", "rpn_head", "bbox_head")


class ExportError(ValueError):
    """A model cannot be exported as asked; the message says why in one line."""


class DensePart(nn.Module):
    """Backbone, neck and dense head of a classifier, segmentor or detector.

    Args:
        model: A model of mmpretrain, mmseg or mmdet, in evaluation mode.

    Raises:
        ExportError: If it has no dense head, or several.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        children = dict(model.named_children())
        self.backbone, self.neck = model.backbone, children.get("neck")
        self.kind = next((name for name in HEADS if name in children), "")
        self.head = children.get(self.kind)
        if self.head is None or isinstance(self.head, nn.ModuleList):
            raise ExportError(f"a {type(model).__name__} has not one dense head to be exported")

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the outputs of normalised images (B, C, H, W).

        Returns:
            ``logits`` of a classifier (B, classes), or of a segmentor's decode head
            (B, classes, h, w), not resized to the image. Of a one-stage detector
            ``cls_score_0``, ..., ``bbox_pred_0``, ..., finest level first. Of a two-stage detector
            ``feature_0``, ..., the maps of the neck that RoI heads take, then the outputs of its
            RPN, ``rpn_cls_score_0``, ..., ``rpn_bbox_pred_0``, ...

        Raises:
            ExportError: If a detector's head returns more than scores and boxes.
        """
        maps = self.backbone(image)
        maps = maps if self.neck is None else self.neck(maps)
        outputs = self.head(maps)
        if self.kind in ("head", "decode_head"):
            return {"logits": outputs}
        if len(outputs) != 2:
            raise ExportError(f"a {type(self.head).__name__} gives more than scores and boxes")
        if self.kind == "bbox_head":
            return _number(cls_score=outputs[0], bbox_pred=outputs[1])
        return _number(feature=maps, rpn_cls_score=outputs[0], rpn_bbox_pred=outputs[1])


def check_installed() -> None:
    """Raise ExportError if a library that writes or runs ONNX files is missing or too old."""
    names = ("onnx", "onnxscript", "onnxruntime")
    missing = ", ".join(name for name in names if find_spec(name) is None)
    if missing:
        raise ExportError(f"{missing} not installed: pip install 'crossformer_mm[export]'")
    if torch.__version__ < (2, 6):
        raise ExportError(f"PyTorch {torch.__version__} is too old: 2.6 or newer is needed")


def check_destination(path: Path) -> None:
    """Raise ExportError if ``path`` cannot be written, before work is spent."""
    if path.suffix != ".onnx" or path.is_dir():
        raise ExportError(f"OUT {path} must be a file whose name ends with .onnx")
    try:
        TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ExportError(f"OUT {path} cannot be written: {error.strerror}") from error


def describe_input(cfg: Config) -> dict[str, str]:
    """What a file says about its images, in JSON or words, from the config's data preprocessor."""
    preprocessor = find_preprocessor(cfg)
    is_rgb = preprocessor.get("bgr_to_rgb") or preprocessor.get("to_rgb")  # mmpretrain's name
    return dict(
        mean=json.dumps(preprocessor.get("mean", [0, 0, 0])),
        std=json.dumps(preprocessor.get("std", [1, 1, 1])),
        channel_order="RGB" if is_rgb else "BGR",
        pad_size_divisor=json.dumps(preprocessor.get("pad_size_divisor", 1)),
        config=Path(cfg.filename).name,
    )


def export_onnx(
    part: DensePart, shape: tuple[int, int], path: Path, metadata: Mapping[str, str]
) -> dict[str, float]:
    """Export a model for one image of one size, and compare the file with PyTorch.

    Args:
        part: In evaluation mode.
        shape: Height and width of the image, in pixels.
        path: The file. An older one is replaced, and stays if this one is not kept.
        metadata: Texts that the file carries, such as those of :func:`describe_input`.

    Returns:
        How far each output of the file, run in onnxruntime on a random image, is from PyTorch's:
        the largest difference, divided by the largest absolute value of the output.

    Raises:
        ExportError: If PyTorch cannot export the part, the disk is full, onnxruntime cannot run
            the file, or an output deviates by more than :data:`TOLERANCE`.
    """
    from onnxruntime import InferenceSession  # an optional library

    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, part.backbone.in_channels, *shape, generator=generator)
    with torch.no_grad():
        expected = part(image)
    with _explaining("PyTorch cannot export this model"), torch.no_grad():
        names = dict(input_names=[INPUT], output_names=list(expected))
        program = torch.onnx.export(part, (image,), dynamo=True, verbose=False, **names)
    program.model.metadata_props.update(metadata)
    with atomic_write(path) as temporary:
        with _explaining(f"{path} cannot be written"):
            program.save(temporary, external_data=False)
        with _explaining("onnxruntime cannot run the exported model"):
            session = InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
            found = session.run(list(expected), {INPUT: image.numpy()})
        deviations = {
            name: _deviation(torch.from_numpy(one), expected[name])
            for name, one in zip(expected, found, strict=True)
        }
        worst = max(deviations, key=deviations.get)
        if deviations[worst] > TOLERANCE:
            raise ExportError(
                f"the file would not compute what PyTorch does: {worst} deviates by "
                f"{deviations[worst]:.1e} of its largest value, and {TOLERANCE:.0e} is allowed"
            )
    return deviations


def _number(**levels: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name}_{i}": level for name, of in levels.items() for i, level in enumerate(of)}


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Make any error an ExportError of one line; the libraries' texts fill pages."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"{what}: {reason}") from error


def _deviation(found: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    # NaN is no match, and would get lost when the largest of several is taken.
    return torch.nan_to_num((found - expected).abs().max() / scale, nan=float("inf")).item()
