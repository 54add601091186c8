"""Inference as a CUDA graph: one launch instead of one for each of hundreds of small kernels."""

import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn

WARM_UP_RUNS = 3  # kernels are compiled, and libraries choose theirs


def record_graph(step: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, object]:
    """Record what ``step`` does on the current GPU, and return the graph and its outputs.

    Each replay of the graph overwrites the outputs.

    Args:
        step: Works on tensors that stay where they are.
    """
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(WARM_UP_RUNS):
            step()
    torch.cuda.current_stream().wait_stream(side_stream)
    torch.cuda.synchronize()
    gc.collect()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    return graph, outputs


class GraphedBackbone:
    """A backbone in evaluation, recorded for images of one shape and type.

    The weights are read where they are: training on changes what it computes, and moving the
    model to another device or loading other tensors into it needs a new recording.

    Args:
        backbone: On a GPU and in evaluation.
        image: (B, C, H, W) on the same GPU, an example.

    Raises:
        ValueError: If the backbone is in training mode or the image is not on a GPU.

    Examples:
        >>> backbone = CrossFormer('small').cuda().eval()  # doctest: +SKIP
        >>> graphed = GraphedBackbone(backbone, torch.rand(1, 3, 224, 224, device='cuda'))
        >>> maps = graphed(image)  # valid until the next call
    """

    def __init__(self, backbone: nn.Module, image: Tensor) -> None:
        if backbone.training:
            raise ValueError("backbone is in training mode: call backbone.eval() first")
        if image.device.type != "cuda":
            raise ValueError(f"image is on {image.device}: CUDA graphs need a GPU")
        self.image = image.clone()
        with torch.no_grad():
            self.graph, self.maps = record_graph(lambda: backbone(self.image))

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of an image; the next call overwrites them.

        Raises:
            ValueError: If the image has another shape or type than the example.
        """
        if image.shape != self.image.shape or image.dtype != self.image.dtype:
            raise ValueError(
                f"image is {tuple(image.shape)} of {image.dtype}, but the graph was recorded for "
                f"{tuple(self.image.shape)} of {self.image.dtype}"
            )
        self.image.copy_(image)
        self.graph.replay()
        return self.maps
