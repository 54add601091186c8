"""Write a dense part as an ONNX file, which is kept only if it computes what PyTorch computes."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

import torch
from mmengine.config import Config
from torch import Tensor

from crossformer_mm.deploy.dense_part import DensePart, ExportError
from crossformer_mm.engine.config import find_preprocessor
from crossformer_mm.utils.io import atomic_write

INPUT = "image"
# Float32 and another order of sums make 1e-6 or so.
TOLERANCE = 1e-4


def check_installed() -> None:
    """Raise ExportError if a library that writes or runs ONNX files is missing or too old."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"{', '.join(missing)} not installed: pip install 'crossformer_mm[export]'"
        )
    if torch.__version__ < (2, 6):
        raise ExportError(f"PyTorch {torch.__version__} is too old: 2.6 or newer is needed")


def check_destination(path: Path) -> None:
    """Raise ExportError if ``path`` cannot be written, before work is spent."""
    if path.suffix != ".onnx" or path.is_dir():
        raise ExportError(f"OUT {path} must be a file whose name ends with .onnx")
    try:
        with TemporaryFile(dir=path.parent):
            pass
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
            found = _run(temporary, image)
        deviations = {name: _deviation(found[name], expected[name]) for name in expected}
        worst = max(deviations, key=deviations.get)
        if deviations[worst] > TOLERANCE:
            raise ExportError(
                f"the file would not compute what PyTorch does: {worst} deviates by "
                f"{deviations[worst]:.1e} of its largest value, and {TOLERANCE:.0e} is allowed"
            )
    return deviations


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Make any error an ExportError of one line; the libraries' texts fill pages."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"{what}: {reason}") from error


def _run(path: Path, image: Tensor) -> dict[str, Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = map(torch.from_numpy, session.run(None, {INPUT: image.numpy()}))
    return dict(zip([output.name for output in session.get_outputs()], values, strict=True))


def _deviation(found: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    # NaN is no match, and would get lost when the largest of several is taken.
    return torch.nan_to_num((found - expected).abs().max() / scale, nan=float("inf")).item()
