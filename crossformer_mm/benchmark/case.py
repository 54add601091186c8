"""One benchmark case: what is run, at which size, and which contenders are compared."""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from crossformer_mm.models import ATTENTION_PATHS, CrossFormer

BASELINE = "plain"
DEFAULT_PATH = inspect.signature(CrossFormer).parameters["attention_path"].default
RUNS = ("eager", "compile", "cudagraph")
MODES = ("inference", "train")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Contender(NamedTuple):
    """A model and how it is run.

    ``model`` is an attention path of CrossFormer or the library of a Swin-T, and ``run`` is
    ``'eager'``, ``'compile'`` (the backbone, with torch.compile) or ``'cudagraph'``.
    """

    model: str
    run: str = "eager"


@dataclass(frozen=True)
class Case:
    """What is measured; it travels to child processes.

    Args:
        contenders: What is compared.
        backbone: Arguments of CrossFormer, without ``attention_path``.
        config: Config file of a whole model, to be measured instead of a backbone.
        cfg_options: What is overridden in it.
        mode: ``'inference'`` (forward) or ``'train'`` (forward, backward and optimizer step).
        shape: Height and width of the images.
        batch: Images per repetition.
        dtype: ``'fp32'``, or ``'bf16'`` or ``'fp16'`` with autocast.
        device: ``'cuda'`` or ``'cpu'``.
        repeat: Repetitions that are timed.
        warmup: Repetitions before them.
        threads: CPU threads; None: PyTorch's choice.

    Raises:
        ValueError: If the combination cannot be measured; the message names the argument.
    """

    contenders: tuple[Contender, ...]
    backbone: dict = field(default_factory=dict)
    config: str | None = None
    cfg_options: dict = field(default_factory=dict)
    mode: str = "inference"
    shape: tuple[int, int] = (224, 224)
    batch: int = 1
    dtype: str = "fp32"
    device: str = "cpu"
    repeat: int = 10
    warmup: int = 3
    threads: int | None = None

    def __post_init__(self) -> None:
        runs = {contender.run for contender in self.contenders}
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: no GPU was found, choose cpu")
        if self.device == "cpu" and self.dtype == "fp16":
            raise ValueError("--dtype fp16 needs a GPU: on a CPU choose fp32 or bf16")
        if self.device == "cpu" and "cudagraph" in runs:
            raise ValueError("--run cudagraph needs a GPU: on a CPU choose eager or compile")
        if self.mode == "train" and "cudagraph" in runs:
            raise ValueError("--run cudagraph is for --mode inference: choose eager or compile")

    @property
    def name(self) -> str:
        """A short description; what has its default value is left out."""
        size = f"{self.shape[0]}x{self.shape[1]} b{self.batch} {self.mode} {self.dtype}"
        if self.config is not None:
            return f"{Path(self.config).stem} {size}"
        options = {k: v for k, v in self.backbone.items() if k != "arch" and v not in (None, False)}
        extras = [f"{key}={str(value).replace(' ', '')}" for key, value in options.items()]
        arch = self.backbone.get("arch", "small")
        return " ".join([arch if isinstance(arch, str) else "custom", size, *extras])


def describe_step(case: Case) -> str:
    """Say precisely what one repetition is."""
    if case.mode == "inference" and case.config is None:
        return "the forward pass of the backbone"
    if case.mode == "inference":
        return (
            "the forward pass of the whole model in mode 'tensor': without post-processing; RoI "
            "heads, where it has them, on the proposals for random images"
        )
    what = "the backbone"
    if case.config is not None:
        what = "backbone, neck and dense heads, without RoI heads and the heads' own losses"
    return f"forward and backward pass of {what} (of the outputs' mean squares) and AdamW's step"


def own_contenders(paths: list[str] | None, runs: list[str]) -> tuple[Contender, ...]:
    """The asked for paths of CrossFormer, or its default, and always the baseline."""
    paths = [*(paths or [DEFAULT_PATH]), BASELINE]
    assert BASELINE in ATTENTION_PATHS
    return tuple(Contender(path, run) for run in runs for path in dict.fromkeys(paths))
