"""A contender's model made ready to run: device, precision, compilation, optimizer."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from crossformer_mm.benchmark.case import DTYPES, Case, Contender
from crossformer_mm.benchmark.models import build_contender, data_samples, dense_outputs
from crossformer_mm.benchmark.peak_memory import MEGABYTE
from crossformer_mm.cuda_graph import record_graph

WARM_UP_SIDE = 224  # what mmpretrain's Swin-T takes at least
WARM_UP_BATCH = 2  # what batch norm takes at least
LEARNING_RATE = 1e-6  # so small that the weights stay what they are
# On a CPU, PyTorch has it since 2.4; the other is five times as slow.
FUSED_ADAMW = hasattr(torch.library, "custom_op") or None


class Workload:
    """Runs one repetition of a case on the images it is called with.

    Args:
        case: What is measured.
        contender: The model, and how it is run.
    """

    def __init__(self, case: Case, contender: Contender) -> None:
        if case.threads is not None:
            torch.set_num_threads(case.threads)
        # The same weights for all paths: what a detector's RoI heads cost depends on them.
        torch.manual_seed(0)
        self.case = case
        self.contender = contender
        self.model = build_contender(case, contender.model).to(case.device)
        # Not as an expression: some libraries' train() returns None.
        self.model.train(case.mode == "train")
        if contender.run == "compile":
            self._compile()
        if case.mode == "train":
            trained = [p for p in self.model.parameters() if p.requires_grad]
            self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=FUSED_ADAMW)
            self.scaler = _grad_scaler(enabled=case.dtype == "fp16")

    def __call__(self, image: Tensor, samples: list | None = None) -> object:
        """Run the forward pass, and in training the backward pass and the optimizer."""
        if self.case.mode == "train":
            return self._train(image)
        with torch.no_grad(), self._autocast():
            if self.case.config is None:
                return self.model(image)
            return self.model(image, samples, mode="tensor")

    def _train(self, image: Tensor) -> None:
        with self._autocast():
            if self.case.config is None:
                outputs = self.model(image)
            else:
                outputs = dense_outputs(self.model, image)
            loss = sum(output.float().square().mean() for output in _tensors(outputs))
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _compile(self) -> None:
        # Contenders share code, and PyTorch's limit per function is meant for one model.
        torch._dynamo.config.cache_size_limit = 64
        if self.case.config is None:
            self.model = torch.compile(self.model, dynamic=False)
        else:
            self.model.backbone = torch.compile(self.model.backbone, dynamic=False)

    def _autocast(self) -> AbstractContextManager:
        if self.case.dtype == "fp32":
            return nullcontext()
        # A graph must contain the casts of the weights, not point into a cache.
        keep_casts = self.contender.run != "cudagraph"
        dtype = DTYPES[self.case.dtype]
        return torch.autocast(self.case.device, dtype, cache_enabled=keep_casts)


class GraphReplay:
    """A step recorded as a CUDA graph; calling it runs the graph.

    ``peak_mb`` is what the recording allocated at its peak: a graph keeps its memory.

    Args:
        step: What is recorded, with fixed inputs.
    """

    def __init__(self, step: Callable[[], object]) -> None:
        step()  # what is compiled and cached at first does not belong to the graph
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.graph, self.outputs = record_graph(step)
        self.peak_mb = (torch.cuda.max_memory_allocated() - before) / MEGABYTE

    def __call__(self) -> None:
        """Run the recorded step."""
        self.graph.replay()


def prepare_step(case: Case, contender: Contender) -> Callable[[], object]:
    """Build a contender and return what runs it once on random images."""
    images = _random_images(case, case.shape, case.batch)
    step = partial(Workload(case, contender), images, data_samples(case))
    return GraphReplay(step) if contender.run == "cudagraph" else step


def prepare_warm_step(case: Case, contender: Contender) -> Callable[[], object]:
    """The same, after a first repetition: a small one where the model takes several sizes."""
    workload, samples = Workload(case, contender), data_samples(case)
    has_one_size = contender.run != "eager" or contender.model == "timm" or samples is not None
    if has_one_size:
        workload(_random_images(case, case.shape, case.batch), samples)
    else:
        small = tuple(min(side, WARM_UP_SIDE) for side in case.shape)
        workload(_random_images(case, small, min(case.batch, WARM_UP_BATCH)))
    return partial(workload, _random_images(case, case.shape, case.batch), samples)


def _random_images(case: Case, shape: Sequence[int], batch: int) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(batch, 3, *shape).to(case.device)


def _grad_scaler(enabled: bool) -> object:
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler("cuda", enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)  # PyTorch before 2.3


def _tensors(outputs: object) -> list[Tensor]:
    """The floating point tensors in nested lists and tuples."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    return [tensor for output in outputs for tensor in _tensors(output)]
