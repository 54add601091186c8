"""Values that the authors' code computed, where the folder with them is at hand."""

import importlib.util
import json
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from types import ModuleType

import numpy as np
import old_checkpoints as old
import pytest
import torch
from conftest import CONFIGS, CPU_BACKENDS
from test_attention import use
from test_backbone import reference_of
from torch import Tensor, nn

from crossformer_mm.checkpoints.convert import convert_checkpoint
from crossformer_mm.checkpoints.reader import load_file
from crossformer_mm.engine.config import load_config
from crossformer_mm.models.architectures import ARCH_ZOO
from crossformer_mm.models.build import build_on_meta

pytestmark = pytest.mark.families

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden"
BACKENDS = ("auto", *CPU_BACKENDS)
TOLERANCE = 1e-5  # standard deviations
LOGITS, DENSE = sorted(GOLDEN.glob("logits_*.npz")), sorted(GOLDEN.glob("dense_*.npz"))

if not GOLDEN.is_dir():
    pytest.skip("the folder shared/golden is not beside the repository", allow_module_level=True)


@lru_cache(maxsize=1)
def golden_weights() -> ModuleType:
    """Import the golden folder's own ``weights.py``."""
    spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=1)
def golden_state(arch: str) -> dict[str, Tensor]:
    """An architecture's state dict, classification head included, by the authors' names."""
    shapes = json.loads((GOLDEN / f"shapes_crossformer-{arch}.json").read_text())
    return {n: torch.from_numpy(values) for n, values in golden_weights().fill(shapes).items()}


def golden_image(height: int, width: int, seed: int, batch: int = 1) -> Tensor:
    return torch.from_numpy(golden_weights().image(height, width, seed=seed, batch=batch))


def assert_golden(actual: Tensor, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    error = np.abs(actual.numpy() - expected).max() / expected.std()
    assert error <= TOLERANCE, f"off by {error:.2g} standard deviations"


class DenseGolden:
    """A file of maps: some of their values, and what they were computed from."""

    def __init__(self, file: Path) -> None:
        self.values = np.load(file)
        meta = json.loads(str(self.values["meta"]))
        self.arch = meta["arch"].removeprefix("crossformer-")
        self.arguments = {"lda_mode": meta["lda"]}
        self.arguments |= {name: meta[name] for name in ("group_size", "interval")}
        self.image = golden_image(meta["height"], meta["width"], seed=meta["seed"])

    def compare(self, maps: list[Tensor]) -> None:
        assert len(maps) == 4
        for stage, m in enumerate(maps):
            assert list(m.shape) == list(self.values[f"shape{stage}"])
            found = m.flatten()[self.values[f"index{stage}"]]
            assert_golden(found, self.values[f"value{stage}"])


def test_every_kind_of_file_is_there():
    assert len(LOGITS) >= 3 and len(DENSE) >= 6


def load_converted(source: Path, config: str, options: dict | None = None) -> nn.Module:
    """Convert a file, and load the result into a model that needs all of it and no more."""
    new = source.with_name("new.safetensors")
    convert_checkpoint(source, new)
    model = build_on_meta(load_config(str(CONFIGS / config), options))
    model.load_state_dict(load_file(new)["state_dict"], strict=True, assign=True)
    return model


@pytest.mark.parametrize("arch", ARCH_ZOO)
@torch.no_grad()
def test_the_authors_classifier_in_mmpretrain(tmp_path, arch):
    state = golden_state(arch)
    buffers = old.v1_buffers(state)
    if arch == "small":
        listed = json.loads((GOLDEN / "v1_buffers_crossformer-small.json").read_text())
        shapes = {name: shape for name, (shape, *_) in listed.items()}
        assert {name: list(value.shape) for name, value in buffers.items()} == shapes
    old.save_classifier(tmp_path / "w.pth", {**state, **buffers})
    config = f"classification/crossformer-{arch}_8xb128_in1k.py"
    model = load_converted(tmp_path / "w.pth", config)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[name]), name
    logits = GOLDEN / f"logits_crossformer-{arch}_224.npz"
    for backend in BACKENDS if logits in LOGITS else ():
        found = use(model, backend)(golden_image(224, 224, seed=1, batch=2), mode="tensor")
        assert_golden(found, np.load(logits)["logits"])


DENSE_CONFIGS = dict(
    mask_rcnn="detection/mask-rcnn_crossformer-{}_fpn_1x_coco.py",
    semantic_fpn="segmentation/fpn_crossformer-{}_4xb4-80k_ade20k-512x512.py",
    upernet="segmentation/upernet_crossformer-{}_8xb2-160k_ade20k-512x512.py",
)


@pytest.mark.parametrize(
    ("file", "kind"), [*zip(DENSE, cycle(DENSE_CONFIGS), strict=False)], ids=lambda v: Path(v).stem
)
@torch.no_grad()
def test_the_authors_dense_model_in_its_library(tmp_path, file, kind):
    golden = DenseGolden(file)
    classes = 80 if kind == "mask_rcnn" else 150
    weights = old.dense_weights(kind, golden.arch, classes)
    weights |= {f"backbone.{n}": v for n, v in golden_state(golden.arch).items() if n[:4] != "head"}
    old.save_dense(tmp_path / "w.pth", {**weights, **old.v1_buffers(weights)}, classes)
    # "pp-small" is "pp-s" in names of configs, and no Semantic FPN of it has groups of 7.
    short = golden.arch.replace("small", "s")
    config = DENSE_CONFIGS[kind].format(short)
    if not (CONFIGS / config).is_file():
        config = DENSE_CONFIGS[kind].format(f"{short}-g14")
    options = {f"model.backbone.{name}": value for name, value in golden.arguments.items()}
    backbone = load_converted(tmp_path / "w.pth", config, options).backbone
    golden.compare(reference_of(backbone, backbone.state_dict(), golden.image))
    for backend in BACKENDS:
        golden.compare(use(backbone, backend)(golden.image))
