"""The models that a benchmark compares, each made ready to run one step."""

from collections.abc import Mapping
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
from torch import nn

from crossformer_mm.analysis.flex import use_flex
from crossformer_mm.models import ATTN_BACKENDS, CrossFormer
from crossformer_mm.models.build import build_model, image_channels

RUNS = ("eager", "compile")
ATTENTION = (*ATTN_BACKENDS, "flex")
SWIN = {  # of each library, the arguments of its Swin-T
    "mmdet": {},
    "mmpretrain": dict(arch="tiny", out_indices=(0, 1, 2, 3), pad_small_map=True),
    "timm": dict(
        model_name="swin_tiny_patch4_window7_224", features_only=True, strict_img_size=False
    ),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# On a CPU, PyTorch has it since 2.4, when custom_op came; the other is five times as slow.
FUSED_ADAMW = hasattr(torch.library, "custom_op") or None


class Variant(NamedTuple):
    """What is compared.

    ``name`` is an attention backend of CrossFormer, ``'flex'`` (PyTorch's FlexAttention in it), a
    library (its Swin-T), or the type of another backbone in a config. ``run`` is ``'eager'`` or
    ``'compile'``: the backbone by torch.compile.
    """

    name: str
    run: str = "eager"


@dataclass(frozen=True)
class Case:
    """What every variant runs; it travels to child processes.

    Args:
        variants: What is compared.
        backbone: Arguments of CrossFormer, without ``attn_backend``.
        cfg: Config of a whole model, to be measured instead of a backbone.
        mode: ``'inference'`` (forward; of a whole model without post-processing) or ``'train'``
            (forward, backward from the outputs' mean squares, and AdamW; of a backbone only).
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
        for name in SWIN:
            if name in dict(self.variants) and find_spec(name) is None:
                raise ValueError(f"--against {name}: {name} is not installed")

    def __str__(self) -> str:
        options = dict(self.backbone)
        arch = options.pop("arch", "small")
        name = Path(self.cfg.filename).stem if self.cfg else arch if type(arch) is str else "custom"
        size = f"{self.shape[0]}x{self.shape[1]} b{self.batch} {self.mode} {self.dtype}"
        extras = [f"{key}={value}" for key, value in options.items()]
        return " ".join([name, size, self.device, f"threads={self.threads}", *extras])


class Step:
    """Runs a variant of a case once, always on the same random images."""

    def __init__(self, case: Case, variant: Variant) -> None:
        torch.manual_seed(0)  # the same weights for all: what RoI heads cost depends on them
        self.case = case
        self.model = _build_variant(case, variant).to(case.device)
        self.model.train(case.mode == "train")  # not chained: some libraries return None
        if variant.run == "compile":
            backbone = self.model if case.cfg is None else self.model.backbone
            backbone.compile(dynamic=False)
        if case.mode == "train":
            trained = [p for p in self.model.parameters() if p.requires_grad]
            self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=FUSED_ADAMW)
            scaler = getattr(torch.amp, "GradScaler", torch.cuda.amp.GradScaler)
            self.scaler = scaler(enabled=case.dtype == "fp16")
        self.inputs = self.make_inputs(case.shape, case.batch)

    def make_inputs(self, shape: tuple[int, int], batch: int) -> tuple:
        """Random images, and for a whole model what its ``forward`` takes besides."""
        cfg = self.case.cfg
        channels = image_channels(cfg) if cfg else 3
        images = torch.rand(batch, channels, *shape).to(self.case.device)
        if cfg is None or cfg.get("default_scope") != "mmdet":
            return (images, None, "tensor") if cfg else (images,)
        from mmdet.structures import DetDataSample

        sizes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), shape)
        sample = DetDataSample(metainfo={**sizes, "scale_factor": (1.0, 1.0)})
        return images, [sample.clone() for _ in range(batch)], "tensor"

    def __call__(self, inputs: tuple | None = None) -> None:
        """Run the forward pass; in training also the backward pass and the optimizer."""
        case, training = self.case, self.case.mode == "train"
        half = torch.autocast(case.device, DTYPES[case.dtype]) if case.dtype != "fp32" else None
        with torch.set_grad_enabled(training), half or nullcontext():
            outputs = self.model(*(inputs or self.inputs))
            if not training:
                return
            loss = sum(output.float().square().mean() for output in outputs)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


def _build_variant(case: Case, variant: Variant) -> nn.Module:
    if variant.name == "flex":
        return use_flex(_build_variant(case, Variant("eager")))
    if case.cfg is not None:
        cfg = deepcopy(case.cfg)
        if cfg.get("custom_imports"):  # a child process has not read the config file
            import_modules_from_strings(**cfg.custom_imports)
        if variant.name in ATTN_BACKENDS:
            cfg.model.backbone.attn_backend = variant.name
        return revert_sync_batchnorm(build_model(cfg))
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
