"""Pictures of a test: one for each image, whatever the folders, from every process."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from mmengine.dist import utils
from mmengine.dist.utils import master_only
from mmengine.visualization import Visualizer

from crossformer_mm.engine.hooks.draw_predictions import DrawPredictionsHook


class Writer(Visualizer):
    """Writes an image as the libraries' do, where the process is the first one."""

    @master_only
    def add_datasample(self, name: str, image: np.ndarray, data_sample: object, out_file: str):
        assert self.dataset_meta["classes"] == ("cat",)
        cv2.imwrite(out_file, image)


@pytest.mark.fault("demo, visualize, explore")
@pytest.mark.parametrize("rank", [0, 1])
def test_images_of_one_name_have_a_picture_each(tmp_path, monkeypatch, rank):
    monkeypatch.setattr(utils, "is_main_process", lambda group=None: rank == 0)
    paths = [tmp_path / "data" / folder / "frame.png" for folder in ("a", "b/c", "b/d")]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        (tmp_path / "out" / path.parent.relative_to(tmp_path / "data")).mkdir(parents=True)
        cv2.imwrite(str(path), np.full((4, 5, 3), 50 * number, np.uint8))
    samples = [SimpleNamespace(img_path=str(path)) for path in paths]
    dataset = BaseDataset(metainfo=dict(classes=("cat",)), lazy_init=True)
    dataset.data_list, dataset.serialize_data = [vars(sample) for sample in samples], False
    dataset._fully_initialized = True
    loader = SimpleNamespace(dataset=dataset)
    runner = SimpleNamespace(test_dataloader=loader, visualizer=Writer())
    hook = DrawPredictionsHook(str(tmp_path / "out"))
    hook.before_test(runner)
    hook.after_test_iter(runner, 0, {}, samples)
    pictures = sorted((tmp_path / "out").rglob("*.png"))
    assert [p.relative_to(tmp_path / "out") for p in pictures] == [
        p.relative_to(tmp_path / "data") for p in paths
    ]
    assert [cv2.imread(str(p)).max() for p in pictures] == [0, 50, 100]
    assert utils.is_main_process() == (rank == 0)
