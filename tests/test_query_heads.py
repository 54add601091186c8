"""DINO and Mask2Former: each recipe is the library's own for Swin, and the small ones learn."""

import numpy as np
import pytest
from conftest import CONFIGS
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from test_configs import shrink
from test_recipes import flat
from torch import nn

from crossformer_mm.engine.config import load_config
from crossformer_mm.engine.runner import build_runner
from crossformer_mm.models.build import build_on_meta

# The library's recipe, and what differs: mmdet has DINO over Swin with five scales only, and our
# folders of data end with a slash.
LIKE = {
    "detection/dino-4scale_crossformer-{}_8xb2-12e_coco": (
        "mmdet::dino/dino-5scale_swin-l_8xb2-12e_coco.py",
        ("num_feature_levels", "num_levels", "num_outs"),
    ),
    "detection/mask2former_crossformer-{}_8xb2-lsj-50e_coco": (
        "mmdet::mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py",
        ("custom_keys",),
    ),
    "segmentation/mask2former_crossformer-{}_8xb2-160k_ade20k-512x512": (
        "mmseg::mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py",
        ("custom_keys", "data_root"),
    ),
}
SECTIONS = (
    *("model", "train_dataloader", "val_dataloader", "test_dataloader", "test_evaluator"),
    *("optim_wrapper", "param_scheduler", "train_cfg", "auto_scale_lr", "default_hooks"),
)
TOYS = sorted({*CONFIGS.glob("*/dino*_toy-*.py"), *CONFIGS.glob("*/mask2former*_toy-*.py")})


def entries_of(cfg: Config, without: tuple[str, ...]) -> dict:
    """Every entry of a recipe but the backbone, the channels of its maps, and some others."""
    value = cfg.to_dict()
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        pipeline = value[loader]["dataset"]["pipeline"]
        pipeline[:] = [step for step in pipeline if step["type"] != "CheckSegLabels"]
    del value["model"]["backbone"]
    hidden = {"in_channels", "_scope_", *without}
    entries = flat({name: value[name] for name in SECTIONS})
    return {name: entry for name, entry in entries.items() if not hidden & {*name.split(".")}}


def kind_of(name: str, module: nn.Module) -> str:
    """What a parameter is for the optimizer."""
    if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
        kind = "norm"
    elif ".attn.pos." in name or "relative_position_bias_table" in name:
        kind = "position"
    else:
        kind = "embedding" if isinstance(module, nn.Embedding) else "weight"
    return f"{'backbone' if name.startswith('backbone') else 'head'} {kind}"


def rates_of(cfg: Config) -> dict[str, set]:
    """Learning rate and weight decay of every kind of parameter."""
    model = build_on_meta(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in wrapper.param_groups for p in g["params"]}
    found: dict[str, set] = {}
    for name, parameter in model.named_parameters():
        kind = kind_of(name, model.get_submodule(name.rpartition(".")[0]))
        found.setdefault(kind, set()).add(rates[id(parameter)])
    return found


@pytest.mark.parametrize("arch", ["s", "pp-s"])
@pytest.mark.parametrize("name", LIKE)
def test_the_recipe_is_the_librarys_for_swin(name, arch):
    like, different = LIKE[name]
    cfg, library = load_config(str(CONFIGS / f"{name.format(arch)}.py")), load_config(like)
    found, expected = entries_of(cfg, different), entries_of(library, different)
    assert {k for k in found | expected if found.get(k) != expected.get(k)} == set()
    if "custom_keys" in different:
        assert rates_of(cfg) == rates_of(library)


@pytest.mark.slow
@pytest.mark.parametrize("config", TOYS, ids=lambda path: path.stem)
def test_a_small_one_learns(config, toy_data_roots, tmp_path):
    root = {"data_root": str(toy_data_roots[config.parent.name])}
    cfg = load_config(str(config), root, str(tmp_path))
    cfg = Config(shrink(cfg.to_dict()), filename=cfg.filename)
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.sampler.type = "InfiniteSampler"  # mmengine sleeps between epochs
    cfg.train_dataloader.dataset.indices = 2
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=12)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = None
    runner = build_runner(cfg, "none", all_weights_needed=False)
    losses, train_step = [], runner.model.train_step

    def step(data: dict, optim_wrapper: OptimWrapper) -> dict:
        found = train_step(data, optim_wrapper)
        losses.append(found["loss"].item())
        return found

    runner.model.train_step = step
    runner.train()
    first, last = np.mean(losses[:3]), np.mean(losses[-3:])
    assert last < 0.9 * first
