"""The models that a benchmark compares, each made ready to run one step."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.utils import get_object_from_string, import_modules_from_strings
from torch import Tensor, nn

from crossformer_mm.analysis.flex import use_flex
from crossformer_mm.deploy import onnx
from crossformer_mm.deploy.compare import make_sample
from crossformer_mm.engine.amp import keep_float32
from crossformer_mm.engine.config import type_name
from crossformer_mm.models import ATTN_BACKENDS, CrossFormer
from crossformer_mm.models.build import build_model, image_channels
from crossformer_mm.models.grouping import LONG_RANGES
from crossformer_mm.models.position_bias import POSITION_BIASES

# What has to be installed for the runs of exported models
DEPLOYED = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "openvino-bf16": ("openvino",),
    "openvino-int8": ("openvino", "nncf"),
}
RUNS = ("eager", "compile", "bf16", *DEPLOYED)
ATTENTION = (*ATTN_BACKENDS, "flex")
SWIN = {  # of each library, the arguments of its Swin-T
    "mmdet": {},
    "mmpretrain": dict(arch="tiny", out_indices=(0, 1, 2, 3), pad_small_map=True),
    "timm": dict(
        model_name="swin_tiny_patch4_window7_224", features_only=True, strict_img_size=False
    ),
}
ABLATIONS = {  # of the papers: arguments of CrossFormer
    **{name: dict(position_bias=name) for name in POSITION_BIASES[1:]},
    **{name: dict(long_range=name) for name in LONG_RANGES[1:]},
    "no-cel": dict(cross_scale=False),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# On a CPU, PyTorch has it since 2.4, when custom_op came; the other is five times as slow.
FUSED_ADAMW = hasattr(torch.library, "custom_op") or None


class Variant(NamedTuple):
    """What is compared.

    ``name`` is an attention backend of CrossFormer, ``'flex'`` (PyTorch's FlexAttention in it), one
    of ``ABLATIONS``, a library (its Swin-T), the type of another backbone in a config, or, of an
    exported model, ``'CrossFormer'``: one file serves for all attention backends. ``run`` is
    ``'eager'``, ``'compile'`` (the backbone by torch.compile), ``'bf16'`` (PyTorch with autocast on
    a CPU), or one of ``DEPLOYED``.
    """

    name: str
    run: str = "eager"


@dataclass(frozen=True, eq=False)
class Case:
    """What every variant runs; it travels to child processes.

    Args:
        variants: What is compared.
        backbone: Arguments of CrossFormer, without ``attn_backend``.
        cfg: Config of a whole model, to be measured instead of a backbone.
        mode: ``'inference'`` (forward; of a whole model from uint8 images to its predictions) or
            ``'train'`` (forward, backward from the outputs' mean squares, and AdamW; of a backbone
            only).
        shape: Height and width of the images.
        batch: Images per step.
        dtype: ``'fp32'``, or ``'bf16'`` or ``'fp16'`` with autocast.
        device: ``'cuda'`` or ``'cpu'``.
        repeat: Rounds; in each, every variant is timed.
        threads: CPU threads.

    Raises:
        ValueError: If the combination cannot be measured; the message names the argument.
    """

    variants: tuple[Variant, ...]
    backbone: Mapping = field(default_factory=dict)
    cfg: Config | None = None
    mode: str = "inference"
    shape: tuple[int, int] = (224, 224)
    batch: int = 1
    dtype: str = "fp32"
    device: str = "cpu"
    repeat: int = 10
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("batch", "repeat", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least 1")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: no GPU was found, choose cpu")
        if self.device == "cpu" and self.dtype == "fp16":
            raise ValueError("--dtype fp16 needs a GPU: on a CPU choose fp32 or bf16")
        if self.cfg is not None and self.mode == "train":
            raise ValueError("--mode train is for a backbone: give --arch instead of --config")
        if self.device == "cpu" and "flex" in dict(self.variants):
            raise ValueError("--attn-backend flex needs a GPU: on a CPU it is not fused")
        for run in {variant.run for variant in self.variants} - {"eager", "compile"}:
            if (self.device, self.mode, self.dtype) != ("cpu", "inference", "fp32"):
                raise ValueError(f"--run {run} is for --device cpu, inference and --dtype fp32")
            if run in DEPLOYED:
                onnx.check_installed(*DEPLOYED[run])
        for name in SWIN:
            if name in dict(self.variants) and find_spec(name) is None:
                raise ValueError(f"--against {name}: {name} is not installed")

    @property
    def model_name(self) -> str:
        """CrossFormer, or the type of the backbone in a config."""
        return type_name(self.cfg.model.backbone) if self.cfg else CrossFormer.__name__

    @property
    def baseline(self) -> Variant:
        """What ratios compare with: PyTorch in float32, of CrossFormer with the eager backend."""
        return Variant("eager" if self.model_name == CrossFormer.__name__ else self.model_name)

    def __str__(self) -> str:
        options = dict(self.backbone)
        if self.cfg and "lda_mode" in self.cfg.model.backbone:
            options["lda_mode"] = self.cfg.model.backbone.lda_mode
        arch = options.pop("arch", "small")
        name = Path(self.cfg.filename).stem if self.cfg else arch if type(arch) is str else "custom"
        size = f"{self.shape[0]}x{self.shape[1]} b{self.batch} {self.mode} {self.dtype}"
        extras = [f"{key}={value}" for key, value in options.items()]
        return " ".join([name, size, self.device, f"threads={self.threads}", *extras])

    def make_images(self, shape: tuple[int, int] | None = None, batch: int | None = None) -> Tensor:
        """Random images, always the same: float32 for a backbone, uint8 for a whole model."""
        generator = torch.Generator().manual_seed(0)
        channels = image_channels(self.cfg) if self.cfg else 3
        size = (batch or self.batch, channels, *(shape or self.shape))
        if self.cfg is None:
            return torch.rand(size, generator=generator)
        return torch.randint(256, size, dtype=torch.uint8, generator=generator)


class Step:
    """Runs a variant of a case in PyTorch once, always on the same random images."""

    def __init__(self, case: Case, variant: Variant) -> None:
        torch.manual_seed(0)  # the same weights for all: what RoI heads cost depends on them
        self.case = case
        self.dtype = DTYPES["bf16" if variant.run == "bf16" else case.dtype]
        self.model = build_variant(case, variant).to(case.device)
        self.model.train(case.mode == "train")  # not chained: some libraries return None
        if variant.run == "compile":
            backbone = self.model if case.cfg is None else self.model.backbone
            backbone.compile(dynamic=False)
        if case.cfg is not None and self.dtype != torch.float32:
            keep_float32(self.model)
        if case.mode == "train":
            trained = [p for p in self.model.parameters() if p.requires_grad]
            self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=FUSED_ADAMW)
            scaler = getattr(torch.amp, "GradScaler", torch.cuda.amp.GradScaler)
            self.scaler = scaler(enabled=case.dtype == "fp16")
        self.inputs = self.make_inputs(case.shape, case.batch)

    def make_inputs(self, shape: tuple[int, int], batch: int) -> Tensor | dict:
        """Random images, for a whole model as its data set gives them: in BGR, with samples."""
        images, cfg = self.case.make_images(shape, batch), self.case.cfg
        if cfg is None:
            return images.to(self.case.device)
        samples = [make_sample(cfg.get("default_scope"), shape) for _ in images]
        return dict(inputs=list(images.flip(1)), data_samples=samples)

    def __call__(self, inputs: Tensor | dict | None = None) -> Sequence | None:
        """Run the forward pass; in training also the backward pass and the optimizer.

        Returns what inference computes.
        """
        case, training = self.case, self.case.mode == "train"
        is_half = self.dtype != torch.float32
        half = torch.autocast(case.device, self.dtype) if is_half else nullcontext()
        run = self.model if case.cfg is None else self.model.test_step
        with torch.set_grad_enabled(training), half:
            outputs = run(self.inputs if inputs is None else inputs)
            if not training:
                return outputs
            loss = sum(output.float().square().mean() for output in outputs)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


def build_variant(case: Case, variant: Variant) -> nn.Module:
    """A variant's model as PyTorch runs it, with the random weights that PyTorch's state gives."""
    if variant.name == "flex":
        return use_flex(build_variant(case, Variant("eager")))
    if case.cfg is not None:
        cfg = deepcopy(case.cfg)
        if cfg.get("custom_imports"):  # a child process has not read the config file
            import_modules_from_strings(**cfg.custom_imports)
        if variant.name in ATTN_BACKENDS:
            cfg.model.backbone.attn_backend = variant.name
        if cfg.get("default_scope") == "mmseg":
            cfg.model.test_cfg = dict(mode="whole")  # as it is exported: no sliding window
        return revert_sync_batchnorm(build_model(cfg))
    if variant.name in ABLATIONS:
        return CrossFormer(**case.backbone, **ABLATIONS[variant.name])
    if variant.name not in SWIN:
        return CrossFormer(**case.backbone, attn_backend=variant.name)
    with_cp = case.backbone.get("with_cp", False)
    if variant.name != "timm":
        return get_object_from_string(f"{variant.name}.models.SwinTransformer")(
            with_cp=with_cp, **SWIN[variant.name]
        )
    import timm

    model = timm.create_model(img_size=case.shape, **SWIN["timm"])
    model.set_grad_checkpointing(with_cp)
    return model
