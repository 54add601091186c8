"""The graph that is written for runtimes computes what the model does, and leaves no trace."""

import pytest
import torch
from conftest import SMALL_ARCH

from crossformer_mm.deploy.graph import fast_graph
from crossformer_mm.models import CrossFormer
from crossformer_mm.models.grouping import LDA_MODES

PLUS_PLUS = dict(group_size=(4, 4, 14, 7), interval=(4, 2, 1, 1), amplitude_cooling=True)
COOLED = {**SMALL_ARCH, "depths": (1, 1, 5, 1), **PLUS_PLUS}


def lively(**options):
    """A backbone whose biases and norms all count; as initialised, many are zero or one."""
    torch.manual_seed(0)
    model = CrossFormer(**options).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
def assert_same(model, image):
    expected = model(image)
    with fast_graph(model):
        found = model(image)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("lda_mode", LDA_MODES)
@pytest.mark.parametrize("arch", [SMALL_ARCH, COOLED], ids=["small", "cooled"])
@pytest.mark.parametrize("shape", [(2, 64, 64), (1, 101, 140), (1, 32, 130), (3, 33, 47)])
def test_the_values_are_the_models(arch, lda_mode, shape):
    model = lively(arch=arch, lda_mode=lda_mode, attn_backend="eager")
    assert_same(model, torch.randn(shape[0], 3, *shape[1:]))


def test_a_published_architecture():
    torch.manual_seed(0)
    assert_same(CrossFormer("pp-small", final_norm=True).eval(), torch.randn(1, 3, 97, 130))


def test_nothing_is_left_behind():
    model = lively(arch=SMALL_ARCH)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyError, match="an error"), fast_graph(torch.nn.Sequential(model)):
        assert all("forward" in block.__dict__ for block in model.layers[0].blocks)
        raise KeyError("an error")
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
