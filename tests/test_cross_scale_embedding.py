"""The convolutions of the stem on blocks of pixels: the same values and gradients."""

import pytest
import torch
from torch import nn

from crossformer_mm.models.cross_scale_embedding import CrossScaleStem, convolve_blocks


@pytest.mark.parametrize("kernel", [4, 8, 16, 32])
@pytest.mark.parametrize("size", [(32, 32), (8, 44), (4, 4)])
def test_convolving_blocks_is_convolving_pixels(kernel, size):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, kernel, stride=4, padding=(kernel - 4) // 2).double()
    image = torch.randn(2, 3, *size, dtype=torch.double, requires_grad=True)
    results = []
    for maps in (convolve_blocks(conv, image), conv(image)):
        weights = torch.linspace(-1, 1, maps.numel(), dtype=torch.double).view_as(maps)
        gradients = torch.autograd.grad((maps * weights).sum(), [image, *conv.parameters()])
        results.append((maps.detach(), *gradients))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_the_stem_is_the_same_with_and_without_gradients():
    torch.manual_seed(0)
    stem, image = CrossScaleStem(3, 16).double(), torch.randn(2, 3, 45, 61).double()
    plain = CrossScaleStem(3, 16, plain=True).double()
    plain.load_state_dict(stem.state_dict())
    trained = stem(image)
    assert trained.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(stem(image), trained)
        torch.testing.assert_close(plain(image), trained)
