"""Quantise an exported model to 8-bit integers, with NNCF."""

import os
from collections.abc import Iterator
from unittest.mock import patch

import numpy as np

from crossformer_mm.deploy.runtimes import INPUT
from crossformer_mm.utils.errors import ExportError, one_line

FOLDED_BYTES = 2**24  # a weight of the largest model; masks of large images are larger


def quantize(model: object, images: np.ndarray, batch: int) -> object:
    """Quantise weights and activations of what multiplies matrices, calibrated on images.

    Args:
        model: ``onnx.ModelProto`` or ``openvino.Model``.
        images: (N, 3, H, W) in RGB, from 0 to 255.
        batch: Images that the model takes at once.

    Raises:
        ExportError: If NNCF cannot quantise it.
    """
    if len(images) < batch:
        what = f"{len(images)} images to calibrate on"
        raise ExportError(f"{what} do not make one batch of {batch}: more are needed")
    with patch.dict(os.environ, CI="true"):  # else it sends telemetry
        import nncf

    try:
        return nncf.quantize(
            _fold(model),
            nncf.Dataset(list(_batches(images, batch))),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(images),
        )
    except Exception as error:
        raise ExportError(f"NNCF cannot quantise this model: {one_line(str(error))}") from error


def _fold(model: object) -> object:
    """Compute what depends on weights alone, so that NNCF sees constants; OpenVINO's own do so."""
    import onnx
    from onnxscript import optimizer

    if isinstance(model, onnx.ModelProto):
        limits = dict(input_size_limit=FOLDED_BYTES, output_size_limit=FOLDED_BYTES)
        return optimizer.optimize(model, **limits)
    return model


def _batches(images: np.ndarray, batch: int) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(images) - batch + 1, batch):
        yield {INPUT: images[start : start + batch]}
