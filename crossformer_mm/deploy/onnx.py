"""Write a whole model as an ONNX or OpenVINO file of ONNX's own operators."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import torch
from torch import Tensor

from crossformer_mm.deploy.graph import fast_graph
from crossformer_mm.deploy.runtimes import GROUP, INPUT
from crossformer_mm.deploy.whole_models import WholeModel
from crossformer_mm.utils.errors import ExportError, one_line

SUFFIXES = dict(onnx=".onnx", openvino=".xml")
# What OpenVINO must not round to bf16: positions in pixels on the way to where RoIs are cut out.
NO_PIXELS = ("Convolution", "MatMul", "TopK", "NonMaxSuppression", "Parameter", "Constant")


def check_installed(*more: str) -> None:
    """Raise ExportError if a library that writes or runs files is missing or too old."""
    names = ("onnx", "onnxscript", "onnxruntime", *more)
    missing = ", ".join(name for name in names if find_spec(name) is None)
    if missing:
        raise ExportError(f"{missing} not installed: pip install 'crossformer_mm[export]'")
    if torch.__version__ < (2, 6):
        raise ExportError(f"PyTorch {torch.__version__} is too old: 2.6 or newer is needed")


def check_destination(path: Path) -> None:
    """Raise ExportError if ``path`` cannot be written, before work is spent."""
    if path.suffix not in SUFFIXES.values() or path.is_dir():
        raise ExportError(f"OUT {path} must be a file whose name ends with .onnx or .xml")
    try:
        TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ExportError(f"OUT {path} cannot be written: {error.strerror}") from error


def export(whole: WholeModel, images: Tensor, metadata: Mapping[str, str]) -> object:
    """Trace a model for images of one shape and type, with PyTorch's current exporter.

    Args:
        metadata: Texts that the file carries.

    Returns:
        The ``onnx.ModelProto``.

    Raises:
        ExportError: If PyTorch cannot export the model.
    """
    with _explaining("PyTorch cannot export this model"), torch.no_grad(), fast_graph(whole):
        names, roi_align = list(whole(images)), torch.ops.torchvision.roi_align.default
        program = torch.export.export(whole, (images,))
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=names,
            custom_translation_table={roi_align: _translate_roi_align},
        )
    exported.model.metadata_props.update(metadata)
    return exported.model_proto


def _translate_roi_align(
    x: object,
    rois: object,
    scale: float,
    height: int,
    width: int,
    sampling_ratio: int = 0,
    aligned: bool = False,
) -> object:
    """RoIAlign in ONNX; its RoIs are gathered, since OpenVINO does not keep slices exact."""
    from onnxscript import opset20 as op
    from onnxscript.onnx_types import INT64

    image = op.Gather(rois, op.Constant(value_int=0), axis=1)
    boxes = op.Gather(rois, op.Constant(value_ints=[1, 2, 3, 4]), axis=1)
    return op.RoiAlign(
        x,
        boxes,
        op.Cast(image, to=INT64.dtype),
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        spatial_scale=scale,
        output_height=height,
        output_width=width,
        sampling_ratio=sampling_ratio,
    )


def to_openvino(model: object) -> object:
    """Convert an ``onnx.ModelProto`` to an ``openvino.Model`` that holds the same metadata."""
    import onnx
    import openvino

    with TemporaryDirectory() as folder, _explaining("OpenVINO cannot convert this model"):
        onnx.save(model, Path(folder) / "model.onnx")
        # Not convert_model, which sends telemetry
        converted = openvino.Core().read_model(Path(folder) / "model.onnx")
        for entry in model.metadata_props:
            converted.set_rt_info(entry.value, [GROUP, entry.key])
        keep_pixels_exact(converted)
    return converted


def keep_pixels_exact(model: object) -> None:
    """Mark what computes the positions of RoIs, which bf16 would round to 4 pixels at 800."""
    todo = [op.input_value(1) for op in model.get_ops() if op.get_type_name() == "ROIAlign"]
    seen = set()
    while todo:
        op = todo.pop().get_node()
        name = op.get_friendly_name()
        if name not in seen and op.get_type_name() not in NO_PIXELS:
            seen.add(name)
            op.get_rt_info()["precise_0"] = ""
            todo += op.input_values()


@contextmanager
def written(model: object, path: Path) -> Iterator[Path]:
    """Write a model beside ``path``, and move it there after the block if that raises nothing.

    Args:
        model: ``onnx.ModelProto``, or ``openvino.Model`` for a ``.xml`` and a ``.bin`` file.

    Raises:
        ExportError: If the disk is full or the like.
    """
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        with _explaining(f"{path} cannot be written"):
            if path.suffix == ".xml":
                import openvino

                openvino.save_model(model, temporary, compress_to_fp16=False)
            else:
                import onnx

                onnx.save(model, temporary)
        yield temporary
        for file in sorted(Path(folder).iterdir()):  # the weights of a .xml first
            shutil.move(file, path.parent / file.name)


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Make any error an ExportError of one line; the libraries' texts fill pages."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        root = error
        while root.__cause__ is not None:  # the exporter's own text says only in which step
            root = root.__cause__
        reason = (str(root).strip() or type(root).__name__).splitlines()[0]
        raise ExportError(f"{what}: {one_line(reason)}") from error
