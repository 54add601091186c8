"""The models of a benchmark as exported files, run without PyTorch."""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from crossformer_mm.analysis.variants import Case, Variant, build_variant
from crossformer_mm.deploy import onnx
from crossformer_mm.deploy.int8 import quantize
from crossformer_mm.deploy.runtimes import ExportedModel
from crossformer_mm.deploy.whole_models import whole_model
from crossformer_mm.engine.amp import has_bf16
from crossformer_mm.models import CrossFormer


class DeployedStep:
    """Runs an exported variant of a case once, on the images that PyTorch's variants get.

    int8 is calibrated on these random images, which is enough for its speed.

    Raises:
        ExportError: If the model cannot be exported, or the runtime cannot run it.
    """

    def __init__(self, case: Case, variant: Variant) -> None:
        self.images = case.make_images().numpy()
        runtime, _, precision = variant.run.partition("-")
        model = _export(case, variant.name)
        if runtime == "openvino":
            model = onnx.to_openvino(model)
        if precision == "int8":
            with redirect_stdout(io.StringIO()):  # progress bars, in the middle of a table
                model = quantize(model, self.images, case.batch)
        # What int8 leaves in float is faster in bf16, where the processor has it.
        half = precision == "bf16" or (precision == "int8" and has_bf16())
        name = f"model{onnx.SUFFIXES.get(runtime, '.onnx')}"
        with TemporaryDirectory() as folder, onnx.written(model, Path(folder) / name) as file:
            self.model = ExportedModel(file, runtime, "bf16" if half else "f32", case.threads)

    def __call__(self) -> Mapping:
        """Compute the file's outputs."""
        return self.model(self.images)


class _Maps(nn.Module):
    """A backbone whose maps have names, as the outputs of an exported model need them."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {f"map_{index}": x for index, x in enumerate(self.backbone(image))}


@lru_cache(maxsize=1)  # the runs of a model follow one another
def _export(case: Case, name: str) -> object:
    """Write a case's CrossFormer or another model as a graph, an ``onnx.ModelProto``."""
    is_own = name == CrossFormer.__name__
    torch.manual_seed(0)
    model = build_variant(case, case.baseline if is_own else Variant(name))
    if case.cfg is None:
        whole = _Maps(model).eval()
    else:
        model.eval()
        whole = whole_model(model, case.cfg, labels=case.cfg.default_scope == "mmseg")
    return onnx.export(whole, case.make_images(), {})
