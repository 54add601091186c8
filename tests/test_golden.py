"""Values that the authors' code computed, where the folder with them is at hand."""

import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import old_checkpoints as old
import pytest
import torch
from conftest import CONFIGS, CPU_BACKENDS
from reference import reference_backbone
from torch import Tensor, nn

from crossformer_mm import CrossFormer
from crossformer_mm.checkpoints.convert import convert_checkpoint
from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.engine.launch import load_config
from crossformer_mm.models.build import build_model

pytestmark = pytest.mark.families

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden"
TOLERANCE = 1e-5  # standard deviations
ARCHITECTURES = ("tiny", "small", "base", "large", "pp-small", "pp-base", "pp-large", "pp-huge")

if not GOLDEN.is_dir():
    pytest.skip("the folder shared/golden is not beside the repository", allow_module_level=True)

every_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def files(pattern: str) -> pytest.MarkDecorator:
    """Parametrise over the golden files, ordered by architecture."""
    found = sorted(GOLDEN.glob(pattern))
    return pytest.mark.parametrize("file", found, ids=[file.stem for file in found])


@pytest.fixture(autouse=True)
def without_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave new parameters uninitialised: each is loaded, or only its shape matters."""
    for name in ("trunc_normal_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


@lru_cache(maxsize=1)
def golden_weights() -> ModuleType:
    """Import the golden folder's own ``weights.py``."""
    spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shapes(arch: str) -> dict[str, list[int]]:
    """Names and shapes of an architecture's state dict, classification head included."""
    return json.loads((GOLDEN / f"shapes_crossformer-{arch}.json").read_text())


@lru_cache(maxsize=1)
def golden_state(arch: str) -> dict[str, Tensor]:
    filled = golden_weights().fill(shapes(arch))
    return {name: torch.from_numpy(values) for name, values in filled.items()}


def golden_image(height: int, width: int, seed: int, batch: int = 1) -> Tensor:
    return torch.from_numpy(golden_weights().image(height, width, seed=seed, batch=batch))


def assert_golden(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max() / expected.std()
    assert error <= TOLERANCE, f"off by {error:.2g} standard deviations"


def assert_dense_golden(maps: list[Tensor], golden: np.lib.npyio.NpzFile) -> None:
    assert len(maps) == 4
    for stage, m in enumerate(maps):
        assert list(m.shape) == list(golden[f"shape{stage}"])
        assert_golden(m.flatten().numpy()[golden[f"index{stage}"]], golden[f"value{stage}"])


def test_every_kind_of_file_is_there() -> None:
    assert len(list(GOLDEN.glob("logits_*.npz"))) >= 3
    assert len(list(GOLDEN.glob("dense_*.npz"))) >= 6


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_names_and_shapes(arch: str) -> None:
    expected = shapes(arch)
    own = {
        name: list(v.shape) for name, v in CrossFormer(arch, final_norm=True).state_dict().items()
    }
    assert own == {name: shape for name, shape in expected.items() if not name.startswith("head.")}
    dense = set(CrossFormer(arch).state_dict())
    assert dense == {name for name in expected if not name.startswith(("head.", "norm."))}


@every_backend
@files("logits_*.npz")
def test_logits(file: Path, backend: str) -> None:
    arch = file.stem.removeprefix("logits_crossformer-").removesuffix("_224")
    state = dict(golden_state(arch))
    head_weight, head_bias = state.pop("head.weight"), state.pop("head.bias")
    model = CrossFormer(
        arch,
        out_indices=(3,),
        final_norm=True,
        lda_mode="fixed_group" if arch.startswith("pp-") else "fixed_interval",
        attn_backend=backend,
    ).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        (features,) = model(golden_image(224, 224, seed=1, batch=2))
    logits = features.mean(dim=(2, 3)) @ head_weight.T + head_bias
    assert_golden(logits.numpy(), np.load(file)["logits"])


def dense_model(meta: dict, backend: str = "auto") -> CrossFormer:
    arch = meta["arch"].removeprefix("crossformer-")
    model = CrossFormer(
        arch,
        group_size=meta["group_size"],
        interval=meta["interval"],
        lda_mode=meta["lda"],
        attn_backend=backend,
    ).eval()
    model.load_state_dict(
        {
            name: value
            for name, value in golden_state(arch).items()
            if not name.startswith(("norm.", "head."))
        }
    )
    return model


@every_backend
@files("dense_*.npz")
def test_dense(file: Path, backend: str) -> None:
    golden = np.load(file)
    meta = json.loads(str(golden["meta"]))
    model = dense_model(meta, backend)
    with torch.no_grad():
        maps = model(golden_image(meta["height"], meta["width"], seed=meta["seed"]))
    assert_dense_golden(maps, golden)


@files("dense_*.npz")
def test_reference(file: Path) -> None:
    golden = np.load(file)
    meta = json.loads(str(golden["meta"]))
    model = dense_model(meta)
    with torch.no_grad():
        maps = reference_backbone(
            model.state_dict(),
            golden_image(meta["height"], meta["width"], seed=meta["seed"]),
            depths=model.arch.depths,
            num_heads=model.arch.num_heads,
            group_size=meta["group_size"],
            interval=meta["interval"],
            lda_mode=meta["lda"],
            amplitude_cooling=model.arch.amplitude_cooling,
        )
    assert_dense_golden(maps, golden)


def load_converted(source: Path, model: nn.Module) -> nn.Module:
    """Convert a file, and load the result into a model that needs all of it and no more."""
    new = source.with_name("new.safetensors")
    convert_checkpoint(source, new)
    model.load_state_dict(load_file(new)["state_dict"], strict=True)
    return model.eval()


@pytest.mark.parametrize("with_buffers", [False, True], ids=["", "v1"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_authors_classifier_in_mmpretrain(
    tmp_path: Path, arch: str, with_buffers: bool
) -> None:
    state = golden_state(arch)
    buffers = old.v1_buffers(state) if with_buffers else {}
    if arch == "small":
        listed = json.loads((GOLDEN / "v1_buffers_crossformer-small.json").read_text())
        assert all(list(buffers[name].shape) == listed[name][0] for name in buffers)
        assert not buffers or set(buffers) == set(listed)
    old.save_classifier(tmp_path / "w.pth", {**state, **buffers})
    config = CONFIGS / f"classification/crossformer-{arch}_8xb128_in1k.py"
    model = load_converted(tmp_path / "w.pth", build_model(load_config(str(config))))
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[name]), name
    logits = GOLDEN / f"logits_crossformer-{arch}_224.npz"
    if logits.is_file() and with_buffers:
        with torch.no_grad():
            found = model(golden_image(224, 224, seed=1, batch=2), mode="tensor")
        assert_golden(found.numpy(), np.load(logits)["logits"])


DENSE_BASES = dict(
    mask_rcnn="detection/mask-rcnn_crossformer-{}_fpn_1x_coco.py",
    semantic_fpn="segmentation/fpn_crossformer-{}_4xb4-80k_ade20k-512x512.py",
    upernet="segmentation/upernet_crossformer-{}_8xb2-160k_ade20k-512x512.py",
)


@pytest.mark.parametrize("kind", DENSE_BASES)
@files("dense_*.npz")
def test_the_authors_dense_model_in_its_library(tmp_path: Path, file: Path, kind: str) -> None:
    golden = np.load(file)
    meta = json.loads(str(golden["meta"]))
    arch = meta["arch"].removeprefix("crossformer-")
    classes = 80 if kind == "mask_rcnn" else 150
    weights = old.dense_weights(kind, arch, classes)
    weights |= {f"backbone.{n}": v for n, v in golden_state(arch).items() if n[:4] != "head"}
    old.save_dense(tmp_path / "w.pth", {**weights, **old.v1_buffers(weights)}, classes)
    # "pp-small" is "pp-s" in names of configs, and no Semantic FPN of it has groups of 7.
    short = arch.replace("small", "s")
    name = DENSE_BASES[kind].format(short)
    if not (CONFIGS / name).is_file():
        name = DENSE_BASES[kind].format(f"{short}-g14")
    groups = {f"model.backbone.{key}": meta[key] for key in ("group_size", "interval")}
    cfg = load_config(str(CONFIGS / name), {**groups, "model.backbone.lda_mode": meta["lda"]})
    model = load_converted(tmp_path / "w.pth", build_model(cfg))
    with torch.no_grad():
        image = golden_image(meta["height"], meta["width"], seed=meta["seed"])
        assert_dense_golden(model.backbone(image), golden)
