"""Run an exported model in onnxruntime or OpenVINO."""

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from crossformer_mm.utils.errors import ExportError, one_line

RUNTIMES = {".onnx": "onnxruntime", ".xml": "openvino"}
PRECISIONS = ("f32", "bf16")
INPUT = "image"
GROUP = "crossformer_mm"  # where OpenVINO's file has what ONNX calls metadata


class ExportedModel:
    """An exported model, ready to run.

    Args:
        path: A ``.onnx`` or ``.xml`` file.
        runtime: ``'onnxruntime'`` or ``'openvino'``, which reads both; by the name if not given.
        precision: ``'f32'``, or ``'bf16'`` in OpenVINO, on a processor that has it.
        threads: How many, if not all cores.

    Attributes:
        metadata: The texts in the file.
        shape: Of the images (B, 3, H, W).
        dtype: Of the images.

    Raises:
        ExportError: If the runtime is not installed, or cannot run the file so.
    """

    def __init__(
        self,
        path: str | Path,
        runtime: str | None = None,
        precision: str = "f32",
        threads: int | None = None,
    ) -> None:
        path = Path(path)
        if path.suffix not in RUNTIMES:
            raise ExportError(f"{path} must be a file whose name ends with .onnx or .xml")
        runtime = runtime or RUNTIMES[path.suffix]
        if find_spec(runtime) is None:
            raise ExportError(f"{runtime} is not installed: pip install 'crossformer_mm[export]'")
        start = _start_openvino if runtime == "openvino" else _start_onnxruntime
        if runtime == "onnxruntime" and (path.suffix == ".xml" or precision != "f32"):
            raise ExportError(f"onnxruntime runs .onnx files in f32, not {path} in {precision}")
        try:
            self.metadata, self.shape, self.dtype, self.run = start(path, precision, threads)
        except Exception as error:
            raise ExportError(f"{runtime} cannot run {path}: {one_line(str(error))}") from error

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Compute every output for images (B, 3, H, W), RGB from 0 to 255."""
        return self.run(np.ascontiguousarray(images, dtype=self.dtype))

    def read(self, key: str) -> object:
        """The entry of the metadata that is written as JSON."""
        return json.loads(self.metadata[key])


def _start_onnxruntime(path: Path, precision: str, threads: int | None) -> tuple:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    dtype = np.uint8 if "uint8" in image.type else np.float32
    return (
        session.get_modelmeta().custom_metadata_map,
        tuple(image.shape),
        dtype,
        lambda images: dict(zip(names, session.run(names, {image.name: images}), strict=True)),
    )


@cache
def openvino_core() -> object:
    """One ``openvino.Core`` for the process, to its end.

    The CPU plugin of each sets a stack for signals, and as it goes sets the one that it found. Of
    two that go in the order in which they came, the second sets the first one's, which is unmapped
    by then: the next signal, such as that of a data loader's process, would end this process.
    """
    import openvino

    return openvino.Core()


def _start_openvino(path: Path, precision: str, threads: int | None) -> tuple:
    core = openvino_core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ExportError("this processor has no bf16: leave the precision at f32")
    model = core.read_model(path)
    known = model.get_rt_info(GROUP).value if model.has_rt_info([GROUP]) else {}
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(model, "CPU", settings)
    names = [next(iter(output.names)) for output in compiled.outputs]
    image = compiled.input(0)
    return (
        known,
        tuple(image.shape),
        image.element_type.to_dtype().type,
        lambda images: dict(zip(names, compiled(images).to_tuple(), strict=True)),
    )
