"""Feature maps of many channels, made visible."""

import torch
from torch import Tensor


def principal_colours(stage_map: Tensor) -> Tensor:
    """Show the three principal components of a map as red, green and blue.

    Args:
        stage_map: (H, W, C).

    Returns:
        (H, W, 3), each channel from 0 to 1; one that does not vary is 0.5.
    """
    values = stage_map.flatten(0, 1).double()
    values = values - values.mean(dim=0)
    # The rows of v are orthogonal directions in the space of channels, by falling variance.
    _, _, v = torch.linalg.svd(values, full_matrices=False)
    # A direction and its opposite are as good: the largest channel is made positive.
    directions = v[:3] * v[:3].gather(1, v[:3].abs().argmax(dim=1, keepdim=True)).sign()
    components = values @ directions.T
    colours = torch.full((len(values), 3), 0.5, dtype=values.dtype)
    for channel, component in enumerate(components.T):
        low, high = component.quantile(0.01), component.quantile(0.99)
        if high - low > 1e-9:
            colours[:, channel] = ((component - low) / (high - low)).clamp(0, 1)
    return colours.view(*stage_map.shape[:2], 3).float()


def channel_mean(stage_map: Tensor) -> Tensor:
    """Average a map (H, W, C) over its channels: (H, W)."""
    return stage_map.mean(dim=-1)
