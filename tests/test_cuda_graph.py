"""A backbone as a CUDA graph gives the maps of the backbone."""

import pytest
import torch

from crossformer_mm import CrossFormer
from crossformer_mm.cuda_graph import GraphedBackbone


def test_what_cannot_be_recorded_is_refused():
    image = torch.rand(1, 3, 64, 64)
    with pytest.raises(ValueError, match="training mode"):
        GraphedBackbone(CrossFormer("tiny").train(), image)
    with pytest.raises(ValueError, match="image is on cpu"):
        GraphedBackbone(CrossFormer("tiny").eval(), image)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_replays_give_the_maps_of_other_images():
    torch.manual_seed(0)
    backbone = CrossFormer("tiny").cuda().eval()
    images = torch.rand(3, 1, 3, 96, 128, device="cuda")
    graphed = GraphedBackbone(backbone, images[0])
    for image in images:
        with torch.no_grad():
            expected = backbone(image)
        for one, other in zip(graphed(image), expected, strict=True):
            torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="recorded for"):
        graphed(images[0, :, :, :64])
