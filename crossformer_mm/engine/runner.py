"""The runner of the tools: mmengine's, with errors that name the file and repeatable data."""

from functools import partial

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from crossformer_mm.datasets.paths import walk_datasets
from crossformer_mm.engine.dist import init_dist, without_amp
from crossformer_mm.engine.hooks.checkpoint_match import CheckpointMatchHook
from crossformer_mm.engine.hooks.loss_check import LossCheckHook
from crossformer_mm.engine.hooks.whole_checkpoints import WholeCheckpointsHook
from crossformer_mm.engine.seeding import SeedEachIterationHook, take_samples, with_seeding_sampler


class DataError(RuntimeError):
    """Something is wrong with a data set; the message names the file or folder."""


class CheckedCompose(Compose):
    """A data set's pipeline; when a transform fails, the DataError says on which file."""

    def __call__(self, data: dict) -> dict | None:
        """Apply the transforms."""
        sample = data
        for transform in self.transforms:
            try:
                data = transform(data)
            except Exception as error:
                files = f"image {sample.get('img_path')}"
                if sample.get("seg_map_path"):
                    files += f", label map {sample['seg_map_path']}"
                name, what = type(transform).__name__, str(error) or type(error).__name__
                raise DataError(f"{name} failed on {files}: {what}") from error
            if data is None:
                return None
        return data


class CheckedRunner(Runner):
    """mmengine's runner, with errors that name what is wrong with the data."""

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, *args: object, **kwargs: object
    ) -> DataLoader:
        """Build a data loader as mmengine does. Each sample has its own random numbers.

        Raises DataError if the data set cannot be read or is empty.
        """
        try:
            loader = Runner.build_dataloader(with_seeding_sampler(dataloader), *args, **kwargs)
        except Exception as error:
            dataset, keys = dataloader["dataset"], ("data_root", "ann_file", "data_prefix")
            place = {key: dataset[key] for key in keys if dataset.get(key)}
            what = f"data set {dataset.get('type')} ({place})"
            raise DataError(f"{what} cannot be read: {error}") from error
        if not hasattr(loader.dataset, "__getitems__"):  # what torch asks for a batch
            loader.dataset.__getitems__ = partial(take_samples, loader.dataset)
        for dataset in walk_datasets(loader.dataset):
            pipeline = getattr(dataset, "pipeline", None)
            if isinstance(pipeline, Compose) and not isinstance(pipeline, CheckedCompose):
                dataset.pipeline = CheckedCompose(pipeline.transforms)
        return loader

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap as mmengine does, which replaces SyncBN by BN on a CPU only if it is one process."""
        if self.distributed and not torch.cuda.is_available():
            print_log("BN replaces SyncBN, if there is any: each process has its own statistics")
            model = revert_sync_batchnorm(model)
        return super().wrap_model(model_wrapper_cfg, model)


def build_runner(cfg: Config, launcher: str, all_weights_needed: bool) -> Runner:
    """Join the other processes, if any, and build the runner that the config describes.

    Its ``check_loss=False`` lets training go on at a NaN or infinite loss. ``launcher`` is that of
    :func:`init_dist`, ``all_weights_needed`` that of :class:`CheckpointMatchHook`.
    """
    init_dist(cfg, launcher)
    amp_replaced = not torch.cuda.is_available() and without_amp(cfg)
    runner = CheckedRunner.from_cfg(cfg)
    runner.register_hook(CheckpointMatchHook(all_weights_needed, cfg.get("resume", False)))
    runner.register_hook(WholeCheckpointsHook())
    runner.register_hook(SeedEachIterationHook())
    if cfg.get("check_loss", True):
        runner.register_hook(LossCheckHook())
    gpu = torch.cuda.is_available() and torch.cuda.get_device_name()
    runner.logger.info(f"Running {runner.world_size} process(es) on {gpu or 'CPU: no GPU found'}")
    if amp_replaced:
        runner.logger.warning("Training in float32: the config's mixed precision needs a GPU")
    return runner
