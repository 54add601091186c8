"""Segmentors through the tools: several scales, odd image sizes, and several CPU processes."""

import pickle
from pathlib import Path

import cv2
import pytest
from conftest import CONFIGS, ROOT, metrics_of, tool_main
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from test_bad_data import CONFIG_OF

from crossformer_mm.engine.config import load_config

TEST = ROOT / "tools/test.py"
CONFIG = CONFIG_OF["segmentation"]


@pytest.fixture(scope="module")
def trained(toy_data_roots, run_tool, tmp_path_factory) -> Path:
    """A checkpoint after 8 iterations on two processes."""
    work_dir = tmp_path_factory.mktemp("segmentor")
    result = run_tool(
        *("bash", ROOT / "tools/dist_train.sh", CONFIG, 2, "--work-dir", work_dir),
        *("--cfg-options", f"data_root={toy_data_roots['segmentation']}"),
        *("train_cfg.max_iters=8", "train_cfg.val_interval=8", "train_dataloader.batch_size=2"),
        "default_hooks.checkpoint.interval=8",
    )
    assert "mIoU" in result.stdout
    return work_dir / "iter_8.pth"


@pytest.fixture
def predict(trained, toy_data_roots, tmp_path, monkeypatch):
    """Runs the testing tool with options and returns predictions by image name, and metrics."""

    def run(name: str, *options: object) -> tuple[dict, dict]:
        data = toy_data_roots["segmentation"]
        tool_main(
            *(TEST, CONFIG, trained, "--work-dir", tmp_path / name),
            *("--out", tmp_path / f"{name}.pkl", *options, "--cfg-options", f"data_root={data}"),
            *("test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False"),
        )
        samples = pickle.loads((tmp_path / f"{name}.pkl").read_bytes())
        labels = {Path(s["img_path"]).stem: s["pred_sem_seg"]["data"][0] for s in samples}
        return labels, metrics_of(tmp_path / name)

    return run


def test_several_scales_change_predictions_of_the_images_own_size(
    predict, toy_data_roots, tmp_path
):
    plain, plain_metrics = predict("plain", "--show-dir", tmp_path / "pictures")
    averaged, averaged_metrics = predict("averaged", "--tta")
    images = toy_data_roots["segmentation"] / "images/validation"
    shapes = {path.stem: cv2.imread(str(path)).shape[:2] for path in images.iterdir()}
    assert any(side % 2 for shape in shapes.values() for side in shape)  # odd sizes are among them
    assert set(plain) == set(averaged) == set(shapes) and len(shapes) == 5
    for name, shape in shapes.items():
        assert plain[name].shape == averaged[name].shape == shape
    assert any((plain[name] != averaged[name]).any() for name in shapes)
    assert plain_metrics["mIoU"] != averaged_metrics["mIoU"]
    pictures = [cv2.imread(str(path)).shape for path in (tmp_path / "pictures").rglob("*.jpg")]
    halves = [(height, width // 2) for height, width, _ in pictures]  # truth and prediction
    assert sorted(halves) == sorted(shapes.values())


def test_every_scale_and_its_mirror_image_count(toy_data_roots):
    """What the shipped pipeline makes of one image: 6 scales times 2, sides multiples of 32."""
    config = CONFIGS / "segmentation/upernet_crossformer-s_8xb2-160k_ade20k-512x512.py"
    init_default_scope("mmseg")
    image = next((toy_data_roots["segmentation"] / "images/validation").iterdir())
    labels = str(image).replace("images", "annotations").replace(".jpg", ".png")
    sample = dict(img_path=str(image), seg_map_path=labels, reduce_zero_label=True, seg_fields=[])
    made = Compose(load_config(str(config)).tta_pipeline)(sample)
    height, width = cv2.imread(str(image)).shape[:2]
    found = []
    for tensor, sample in zip(made["inputs"], made["data_samples"], strict=True):
        assert tensor.shape[1] % 32 == tensor.shape[2] % 32 == 0
        assert sample.gt_sem_seg.shape == (height, width)
        found.append((tuple(tensor.shape[1:]), bool(sample.flip)))
    expected = []
    for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
        # The sides as large as a box of 2048 x 512 times the ratio allows
        factor = min(2048 * ratio / max(height, width), 512 * ratio / min(height, width))
        size = tuple(-(int(side * factor + 0.5) // -32) * 32 for side in (height, width))
        expected += [(size, False), (size, True)]
    assert sorted(found) == sorted(expected)


def test_masks_cannot_be_averaged():
    with pytest.raises(SystemExit, match="^error: --tta needs 'tta_model' in the config$"):
        tool_main(TEST, CONFIG_OF["detection"], TEST, "--tta")
