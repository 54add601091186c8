"""Write a model's dense part as an ONNX file, and compare what it computes with PyTorch."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from crossformer_mm.export.backbone_program import image_axes
from crossformer_mm.export.dense_part import DensePart
from crossformer_mm.export.errors import ExportError
from crossformer_mm.export.image_sizes import MAX_SIDE, Size, sizes_to_try, smallest_dynamic_side
from crossformer_mm.export.size_limits import refuse_other_sizes
from crossformer_mm.whole_files import replace_when_complete

NEEDED_MODULES = ("onnx", "onnxscript", "onnxruntime")
INPUT = "image"
# Of the largest absolute value of an output. Single precision and another order of sums make 1e-6
# or so in each layer.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Comparison:
    """How far the file's outputs are from PyTorch's for one batch of images.

    Attributes:
        shape: (B, C, H, W) of the images.
        deviation: The largest difference of any output, divided by the largest absolute value of
            the same output.
        output: The name of that output.
    """

    shape: tuple[int, ...]
    deviation: float
    output: str


def check_installed() -> None:
    """Raise ExportError if the libraries that write and run ONNX files are missing."""
    missing = [name for name in NEEDED_MODULES if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"{', '.join(missing)} not installed: pip install 'crossformer_mm[export]'"
        )
    if "dynamic_shapes" not in (torch.onnx.export.__kwdefaults__ or {}):
        raise ExportError(f"PyTorch {torch.__version__} is too old: 2.6 or newer is needed")


def write_onnx(
    part: DensePart, shape: Size, dynamic: bool, path: Path, metadata: Mapping[str, str]
) -> list[Comparison]:
    """Write the file if it computes what PyTorch computes.

    Args:
        part: In evaluation.
        shape: Height and width of the image, in pixels.
        dynamic: Whether the file takes batches of any size, of images of any height and width
            from :func:`smallest_dynamic_side` to :data:`MAX_SIDE`; it refuses others. Otherwise
            one image of ``shape``.
        path: The file; an older one is replaced.
        metadata: Texts that the file carries, beside ``min_side`` and ``max_side`` in pixels if
            ``dynamic``.

    Returns:
        The comparisons, one for each size that was tried.

    Raises:
        ExportError: If the part cannot be exported, or deviates by more than :data:`TOLERANCE`.
            Then no file is written.
    """
    image = torch.zeros(2 if dynamic else 1, part.backbone.in_channels, *shape)
    smallest = smallest_dynamic_side(part.backbone)
    if dynamic and not smallest <= min(shape) <= max(shape) <= MAX_SIDE:
        raise ExportError(
            f"--shape {shape[0]} {shape[1]}: with --dynamic, sides must be from {smallest} to "
            f"{MAX_SIDE} pixels, so that every map of this model is larger than a group"
        )
    sizes = sizes_to_try(shape, smallest) if dynamic else [shape]
    with replace_when_complete(path) as temporary:
        _export(part, image, smallest if dynamic else None, temporary)
        limits = dict(min_side=smallest, max_side=MAX_SIDE) if dynamic else {}
        _complete(temporary, {**metadata, **limits}, limits)
        try:
            comparisons = compare(part, temporary, sizes, len(image))
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise ExportError(f"onnxruntime cannot run the exported model: {reason}") from error
        worst = max(comparisons, key=lambda comparison: comparison.deviation)
        # Not a number is not small either.
        if not worst.deviation <= TOLERANCE:
            raise ExportError(
                f"the file would not compute what PyTorch does: {worst.output} deviates by "
                f"{worst.deviation:.1e} of its largest value for images {worst.shape}, "
                f"and {TOLERANCE:.0e} is allowed"
            )
    return comparisons


def _export(part: DensePart, image: Tensor, smallest: int | None, path: Path) -> None:
    from crossformer_mm.export.attention_in_onnx import translations

    axes = None if smallest is None else image_axes(smallest)
    try:
        with torch.no_grad(), _silence():
            names = list(part.named_outputs(image[:1]))
            program = torch.export.export(
                part,
                (image,),
                dynamic_shapes=axes and {INPUT: axes},
                strict=False,
            )
            torch.onnx.export(
                program,
                (image,),
                path,
                input_names=[INPUT],
                output_names=names,
                dynamic_shapes=axes and (axes,),
                custom_translation_table=translations(),
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        # PyTorch's exporters raise errors of many kinds, whose texts fill pages.
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        hint = "; without --dynamic there are fewer obstacles" if axes else ""
        raise ExportError(f"PyTorch cannot export this model{hint}: {reason[0]}") from error


@contextmanager
def _silence() -> Iterator[None]:
    """Keep PyTorch's exporters from filling the screen with what they could not simplify."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _complete(path: Path, metadata: Mapping[str, object], limits: Mapping[str, int]) -> None:
    """Add the texts to a file, and the check of the image's sides if it has limits."""
    import onnx

    model = onnx.load(path)
    if limits:
        refuse_other_sizes(model, INPUT, limits["min_side"], limits["max_side"])
    for name, text in metadata.items():
        model.metadata_props.add(key=name, value=str(text))
    onnx.save(model, path)


def compare(part: DensePart, path: Path, sizes: Sequence[Size], max_batch: int) -> list[Comparison]:
    """Run PyTorch and onnxruntime on random images, batches of 1 to ``max_batch`` in turn."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    comparisons = []
    for i, size in enumerate(sizes):
        shape = (max_batch - i % max_batch, part.backbone.in_channels, *size)
        image = torch.randn(shape, generator=generator)
        with torch.no_grad():
            expected = part.named_outputs(image)
        found = session.run(list(expected), {INPUT: image.numpy()})
        deviations = {
            name: _deviation(torch.from_numpy(value), expected[name])
            for name, value in zip(expected, found, strict=True)
        }
        worst = max(deviations, key=deviations.get)
        comparisons.append(Comparison(shape, deviations[worst], worst))
    return comparisons


def _deviation(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    # NaN would get lost when the largest of several is taken.
    return torch.nan_to_num((found - expected).abs().max() / scale, nan=float("inf")).item()
