"""The model index: complete, up to date, and known to mmpretrain by name after the import."""

import importlib.util
import subprocess
import sys

import cv2
import pytest
import yaml
from conftest import CONFIGS, ROOT
from mmengine.config import Config

TASKS = ("classification", "detection", "segmentation")
PYTHON_PATH = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"


@pytest.fixture(scope="module")
def updater():
    """tools/update_model_zoo.py as a module."""
    path = ROOT / "tools/update_model_zoo.py"
    spec = importlib.util.spec_from_file_location("update_model_zoo", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def models_of(task: str) -> list[dict]:
    return yaml.safe_load((CONFIGS / task / "metafile.yml").read_text())["Models"]


@pytest.mark.parametrize("task", TASKS)
def test_every_config_is_listed(task):
    shipped = {path.stem for path in (CONFIGS / task).glob("*.py") if "_toy-" not in path.stem}
    models = models_of(task)
    assert sorted(shipped) == sorted(model["Name"] for model in models)
    for model in models:
        assert model["Config"] == f"configs/{task}/{model['Name']}.py"
        is_plus_plus = "-pp-" in model["Name"]
        assert model["In Collection"] == ("CrossFormer++" if is_plus_plus else "CrossFormer")
        assert ("++" in model["Metadata"]["Backbone"]) == is_plus_plus


@pytest.mark.parametrize("task", TASKS)
def test_recipes_are_those_of_the_configs(task):
    for model in models_of(task):
        cfg, meta = Config.fromfile(ROOT / model["Config"]), model["Metadata"]
        length = cfg.train_cfg.get("max_epochs") or cfg.train_cfg.max_iters
        assert length == meta.get("Epochs", meta.get("Iterations")), model["Name"]
        assert cfg.auto_scale_lr.base_batch_size == meta["Batch Size"], model["Name"]


@pytest.mark.parametrize("task", TASKS)
def test_tables_are_those_of_the_metafiles(updater, task):
    readme, metafile = (
        (CONFIGS / task / name).read_text() for name in ("README.md", "metafile.yml")
    )
    assert updater.update_readme(readme, metafile) == readme
    changed = metafile.replace("Parameters: ", "Parameters: 9")
    assert updater.update_readme(readme, changed) != readme


def test_updating_a_metafile_writes_the_counted_numbers(updater):
    text = (CONFIGS / "classification/metafile.yml").read_text()
    models = yaml.safe_load(text)["Models"]
    first_model = text[: text.index(f"  - Name: {models[1]['Name']}")]
    zeroed = first_model.replace(f"FLOPs: {models[0]['Metadata']['FLOPs']}", "FLOPs: 0")
    assert zeroed != first_model and updater.update_metafile(zeroed) == first_model


def test_a_metric_of_unknown_origin_is_refused(updater):
    text = (CONFIGS / "detection/metafile.yml").read_text()
    unmarked = text.replace("box AP (published by the authors)", "box AP", 1)
    with pytest.raises(SystemExit, match="metric 'box AP' does not end with"):
        updater.update_readme((CONFIGS / "detection/README.md").read_text(), unmarked)


def test_the_index_is_well_formed():
    from modelindex.load_model_index import load

    index = load(str(ROOT / "model-index.yml"))
    assert index.check(silent=True) == []
    assert len(list(index.models)) == 8 + 19 + 18


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PYTHON_PATH + code],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    "imports",
    [
        "import crossformer_mm, mmpretrain",
        "import mmpretrain, crossformer_mm",
        "import crossformer_mm, importlib, mmpretrain; importlib.reload(crossformer_mm.registry)"
        ".register_classifiers()",
    ],
)
def test_mmpretrain_lists_the_classifiers(imports):
    result = run_python(f"{imports}\nprint(mmpretrain.list_models('crossformer*'))")
    assert result.returncode == 0, result.stderr
    names = [model["Name"] for model in models_of("classification")]
    assert result.stdout.strip().splitlines()[-1] == str(sorted(names))


def test_mmpretrain_builds_a_model_and_classifies_an_image(toy_data_roots):
    image = next((toy_data_roots["classification"] / "val").glob("*/*.JPEG"))
    result = run_python(
        "import crossformer_mm, mmpretrain\n"
        f"name, image = 'crossformer-small_8xb128_in1k', {str(image)!r}\n"
        "model = mmpretrain.get_model(name)\n"
        "assert type(model.backbone) is crossformer_mm.CrossFormer and not model.training\n"
        "for given in (model, name):\n"
        "    found = mmpretrain.inference_model(given, image)\n"
        "    assert found['pred_class'] in model._dataset_meta['classes']\n"
        "    print(found['pred_scores'].shape)\n"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines().count("(1000,)") == 2


def test_without_configs_the_import_warns():
    code = (
        "import crossformer_mm.registry as hub, pathlib, warnings\n"
        "hub.PACKAGE = pathlib.Path('/nowhere/crossformer_mm')\n"
        "import mmpretrain\n"
    )
    result = run_python("import warnings; warnings.simplefilter('always')\n" + code)
    assert result.returncode == 0 and "install the package again" in result.stderr


def read_image(root) -> str:
    return str(next(root.rglob("*.jpg")))


def test_the_detection_inferencer_takes_a_config(toy_data_roots):
    from mmdet.apis import DetInferencer

    config = CONFIGS / "detection/mask-rcnn_crossformer-nano_fpn_toy-coco.py"
    inferencer = DetInferencer(str(config), device="cpu", show_progress=False)
    result = inferencer(read_image(toy_data_roots["detection"]), return_datasamples=True)
    (sample,) = result["predictions"]
    assert len(sample.pred_instances.bboxes) == len(sample.pred_instances.masks)


def test_the_segmentation_inferencer_takes_a_config(toy_data_roots):
    from mmseg.apis import MMSegInferencer

    config = CONFIGS / "segmentation/upernet_crossformer-nano_toy-ade.py"
    image = read_image(toy_data_roots["segmentation"])
    inferencer = MMSegInferencer(str(config), device="cpu", dataset_name="ade20k")
    labels = inferencer(image)["predictions"]
    assert labels.shape == cv2.imread(image).shape[:2]
