"""Pictures of predictions: one per image, whatever the folders, from every process."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from unittest import mock

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import Dataset

from crossformer_mm.datasets.paths import walk_datasets


class DrawPredictionsHook(Hook):
    """Draw the predictions for every tested image with the library's visualizer.

    The libraries' own hooks name pictures by the last part of a path, and only the first process of
    several draws.

    Args:
        folder: Where pictures go, in the folders that the images have below the one they share.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def before_test(self, runner: Runner) -> None:
        """Find the folder that all images share, and have the classes named in every process."""
        dataset = runner.test_dataloader.dataset
        self.root = _shared_folder(dataset)
        with _as_first_process():
            runner.visualizer.dataset_meta = dataset.metainfo

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Mapping, outputs: Sequence
    ) -> None:
        """Draw the images of a batch."""
        import mmcv

        visualizer = runner.visualizer
        draw = getattr(visualizer, "visualize_cls", None) or visualizer.add_datasample
        for sample in outputs:
            name = os.path.relpath(sample.img_path, self.root)
            image = mmcv.imread(sample.img_path, channel_order="rgb")
            with _as_first_process():
                out_file = os.path.join(self.folder, name)
                draw(name=name, image=image, data_sample=sample, out_file=out_file)


def _as_first_process() -> AbstractContextManager:
    """Within the block, visualizers do what they do in the first process only."""
    return mock.patch("mmengine.dist.utils.is_main_process", lambda *group: True)


def _shared_folder(dataset: Dataset) -> str:
    *_, innermost = walk_datasets(dataset)
    paths = (innermost.get_data_info(i)["img_path"] for i in range(len(innermost)))
    return os.path.commonpath({os.path.dirname(path) for path in paths})
