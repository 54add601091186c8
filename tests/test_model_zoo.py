"""The model index: complete, up to date, and known to mmpretrain by name after the import."""

import re
import runpy
from pathlib import Path

import pytest
import yaml
from conftest import CONFIGS, ROOT
from mmengine.config import Config
from test_bad_data import CONFIG_OF

from crossformer_mm import CrossFormer, register_classifiers

UPDATER = runpy.run_path(str(ROOT / "tools/update_model_zoo.py"))


def file_of(task: str, name: str = "metafile.yml") -> str:
    return (CONFIGS / task / name).read_text()


def models_of(task: str) -> list[dict]:
    return yaml.safe_load(file_of(task))["Models"]


@pytest.mark.parametrize("task", CONFIG_OF)
def test_every_config_is_listed_with_what_it_is(task):
    shipped = [path.stem for path in (CONFIGS / task).glob("*.py") if "_toy-" not in path.stem]
    assert sorted(model["Name"] for model in models_of(task)) == sorted(shipped)
    for model in models_of(task):
        name, meta = model["Name"], model["Metadata"]
        assert model["Config"] == f"configs/{task}/{name}.py"
        assert model["In Collection"] == ("CrossFormer++" if "-pp-" in name else "CrossFormer")
        assert ("++" in meta["Backbone"]) == ("-pp-" in name)
        cfg = Config.fromfile(ROOT / model["Config"])
        length = cfg.train_cfg.get("max_epochs") or cfg.train_cfg.max_iters
        assert length == meta.get("Epochs", meta.get("Iterations")), name
        assert cfg.auto_scale_lr.base_batch_size == meta["Batch Size"], name


@pytest.mark.parametrize("task", CONFIG_OF)
def test_tables_are_those_of_the_metafiles(task):
    readme, metafile = file_of(task, "README.md"), file_of(task)
    assert UPDATER["update_readme"](readme, metafile) == readme
    changed = metafile.replace("Parameters: ", "Parameters: 9")
    assert UPDATER["update_readme"](readme, changed) != readme


def test_the_table_of_the_readme_is_that_of_the_metafiles():
    rows = re.findall(r"^\| (CrossFormer\S*) \| (\d.*) \|$", (ROOT / "README.md").read_text(), re.M)
    assert len(rows) == 6
    found = [{model["Name"]: model for model in models_of(task)} for task in CONFIG_OF]
    for name, cells in rows:
        short = name.removeprefix("CrossFormer").replace("++", "-pp").lower()
        [classifier] = [m["Name"] for m in found[0].values() if m["Metadata"]["Backbone"] == name]
        dense = f"mask-rcnn_crossformer{short}_fpn_1x_coco"
        names = (classifier, dense, f"upernet_crossformer{short}_8xb2-160k_ade20k-512x512")
        expected = []
        for model in (models[name] for models, name in zip(found, names, strict=True)):
            size, [*results] = model["Metadata"], model.get("Results") or []
            expected.append(f"{size['Parameters'] / 1e6:.1f}M, {size['FLOPs'] / 1e9:.1f}G")
            metrics = [value for result in results for value in result["Metrics"].values()]
            expected.append(" / ".join(f"{value:.1f}" for value in metrics) or "–")
        assert cells.split(" | ") == expected, name


def test_updating_a_metafile_writes_the_counted_numbers():
    text, models = file_of("classification"), models_of("classification")
    first_model = text[: text.index(f"  - Name: {models[1]['Name']}")]
    zeroed = first_model.replace(f"FLOPs: {models[0]['Metadata']['FLOPs']}", "FLOPs: 0")
    assert zeroed != first_model and UPDATER["update_metafile"](zeroed) == first_model


def test_a_metric_of_unknown_origin_is_refused():
    unmarked = file_of("detection").replace("box AP (published by the authors)", "box AP", 1)
    with pytest.raises(SystemExit, match="metric 'box AP' does not end with"):
        UPDATER["update_readme"](file_of("detection", "README.md"), unmarked)


def test_the_index_is_well_formed():
    from modelindex.load_model_index import load

    index = load(str(ROOT / "model-index.yml"))
    assert index.check(silent=True) == []
    assert len(list(index.models)) == sum(len(models_of(task)) for task in CONFIG_OF)


def test_without_configs_nothing_is_registered_in_silence(monkeypatch):
    monkeypatch.setattr("crossformer_mm.utils.index.PACKAGE", Path("/nowhere/crossformer_mm"))
    with pytest.raises(FileNotFoundError, match="install it again"):
        register_classifiers()


def test_mmpretrain_knows_and_builds_the_classifiers_by_name(toy_data_roots):
    import mmpretrain

    register_classifiers()
    register_classifiers()  # again does nothing
    names = [model["Name"] for model in models_of("classification")]
    assert mmpretrain.list_models("crossformer*") == sorted(names)
    image = str(next(toy_data_roots["classification"].rglob("*.JPEG")))
    model = mmpretrain.get_model("crossformer-small_8xb128_in1k")
    assert type(model.backbone) is CrossFormer and not model.training
    found = mmpretrain.inference_model("crossformer-small_8xb128_in1k", image)
    assert found["pred_scores"].shape == (1000,)
