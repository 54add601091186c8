"""The runner of the tools: mmengine's, with errors that name the file and repeatable data."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import MMLogger, print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import BaseOptimWrapper, OptimWrapper
from mmengine.registry import DATASETS
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from crossformer_mm.checkpoints.loader import checking_values, find_file
from crossformer_mm.datasets.checked_pipeline import CheckedCompose
from crossformer_mm.datasets.coco_annotations import check_while_reading
from crossformer_mm.datasets.paths import walk_datasets
from crossformer_mm.engine.amp import CPUAmpOptimWrapper, keep_float32
from crossformer_mm.engine.config import type_name
from crossformer_mm.engine.dist import init_dist
from crossformer_mm.engine.hooks.checkpoint_match import CheckpointMatchHook
from crossformer_mm.engine.hooks.data_check import DataCheckHook
from crossformer_mm.engine.hooks.loss_check import LossCheckHook
from crossformer_mm.engine.hooks.stop_signals import StopSignalHook, spare_worker
from crossformer_mm.engine.hooks.training_state import TrainingStateHook
from crossformer_mm.engine.hooks.whole_checkpoints import WholeCheckpointsHook
from crossformer_mm.engine.loops import ResumableEpochLoop
from crossformer_mm.engine.seeding import SeedEachIterationHook, take_samples, with_seeding_sampler
from crossformer_mm.utils.errors import (
    CheckpointError,
    DataError,
    mask_secrets,
    one_line,
    reason_of,
)


class CheckedRunner(Runner):
    """mmengine's runner, with errors that name what is wrong with the data."""

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, *args: object, **kwargs: object
    ) -> DataLoader:
        """Build a data loader as mmengine does. Each sample has its own random numbers.

        Raises DataError if the data set cannot be read or is empty, or the loader not be built.
        """
        try:
            checked = with_seeding_sampler(dataloader)
            if isinstance(checked, Mapping):
                checked = dict(checked, dataset=dict(type=_read_dataset, cfg=checked["dataset"]))
                if not checked.get("num_workers"):  # PyTorch refuses the options of workers
                    checked.pop("persistent_workers", None)
                    checked.pop("prefetch_factor", None)
            loader = Runner.build_dataloader(checked, *args, **kwargs)
        except DataError:
            raise
        except Exception as error:
            what = f"the loader of {_describe_dataset(dataloader['dataset'])}"
            raise DataError(f"{what} cannot be built: {reason_of(error)}") from error
        if not hasattr(loader.dataset, "__getitems__"):  # what torch asks for a batch
            loader.dataset.__getitems__ = partial(take_samples, loader.dataset)
        loader.worker_init_fn = partial(spare_worker, loader.worker_init_fn)
        for dataset in walk_datasets(loader.dataset):
            pipeline = getattr(dataset, "pipeline", None)
            if isinstance(pipeline, Compose) and not isinstance(pipeline, CheckedCompose):
                dataset.pipeline = CheckedCompose(dataset)
        return loader

    def build_logger(self, *args: object, **kwargs: object) -> MMLogger:
        """Build as mmengine does; URLs are written without their passwords."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            handler.addFilter(_mask_record)
        return logger

    def load_checkpoint(self, filename: str, *args: object, **kwargs: object) -> dict:
        """Load as mmengine does; raises CheckpointError, which names the file, if it does not fit.

        With ``check_weights=False`` in the config, weights may be NaN or infinite.
        """
        with _naming(filename), checking_values(self.cfg.get("check_weights", True)):
            has_secret = mask_secrets(filename) != str(filename)  # mmengine prints the name
            file = str(find_file(filename)) if has_secret else filename
            return super().load_checkpoint(file, *args, **kwargs)

    def resume(self, filename: str, *args: object, **kwargs: object) -> None:
        """Resume as mmengine does; raises CheckpointError if the training's state is damaged."""
        with _naming(filename):
            try:
                super().resume(filename, *args, **kwargs)
            except (CheckpointError, OSError):
                raise
            except Exception as error:  # mmengine and optimizers take whatever they find
                reason = one_line(f"{type(error).__name__}: {error}")
                raise CheckpointError(f"its training state is damaged: {reason}") from error

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap as mmengine does, which replaces SyncBN by BN on a CPU only if it is one process."""
        if self.distributed and not torch.cuda.is_available():
            print_log("BN replaces SyncBN, if there is any: each process has its own statistics")
            model = revert_sync_batchnorm(model)
        if not torch.cuda.is_available():
            keep_float32(model)
        return super().wrap_model(model_wrapper_cfg, model)

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict) -> BaseOptimWrapper:
        """Build as mmengine does, whose wrapper for mixed precision refuses a CPU."""
        is_amp = isinstance(optim_wrapper, Mapping) and "AmpOptim" in type_name(optim_wrapper)
        if is_amp and not torch.cuda.is_available():
            optim_wrapper = {**optim_wrapper, "type": CPUAmpOptimWrapper}
        return super().build_optim_wrapper(optim_wrapper)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build as mmengine does; its loop by epochs can go on in the middle of one."""
        is_config = isinstance(loop, Mapping)
        if is_config and (loop.get("by_epoch") or type_name(loop) == "EpochBasedTrainLoop"):
            loop = {**loop, "type": ResumableEpochLoop}
            loop.pop("by_epoch", None)
        return super().build_train_loop(loop)

    def save_checkpoint(self, *args: object, **kwargs: object) -> None:
        """Save as mmengine does, on process 0, with the gradients of all that have no step yet."""
        for hook in self.hooks:
            if isinstance(hook, TrainingStateHook):
                hook.collect(self)
        super().save_checkpoint(*args, **kwargs)


@contextmanager
def _naming(filename: str) -> Iterator[None]:
    """Have an error about a checkpoint name it."""
    try:
        yield
    except CheckpointError as error:
        if mask_secrets(filename) in str(error):
            raise
        raise CheckpointError(f"checkpoint {filename}: {error}") from error


def _mask_record(record: logging.LogRecord) -> bool:
    if "://" in (text := record.getMessage()):
        record.msg, record.args = mask_secrets(text), ()
    return True


def build_runner(cfg: Config, launcher: str, all_weights_needed: bool) -> Runner:
    """Join the other processes, if any, and build the runner that the config describes.

    ``check_loss=False`` in the config lets training go on at a NaN or infinite loss,
    ``check_weights=False`` with such weights, and ``check_data=False`` where data and heads
    contradict each other. ``launcher`` is that of
    :func:`init_dist`, ``all_weights_needed`` that of :class:`CheckpointMatchHook`.
    """
    init_dist(cfg, launcher)
    runner = CheckedRunner.from_cfg(cfg)
    runner.register_hook(CheckpointMatchHook(all_weights_needed, cfg.get("resume", False)))
    runner.register_hook(TrainingStateHook(cfg.get("resume", False)))
    runner.register_hook(WholeCheckpointsHook())
    runner.register_hook(StopSignalHook())
    if cfg.get("check_data", True):
        runner.register_hook(DataCheckHook())
    runner.register_hook(SeedEachIterationHook())
    if cfg.get("check_loss", True):
        runner.register_hook(LossCheckHook())
    gpu = torch.cuda.is_available() and torch.cuda.get_device_name()
    runner.logger.info(f"Running {runner.world_size} process(es) on {gpu or 'CPU: no GPU found'}")
    return runner


def _read_dataset(cfg: Mapping | Dataset) -> Dataset:
    try:
        return build_dataset(cfg)
    except DataError:
        raise
    except Exception as error:  # of any library
        raise DataError(f"{_describe_dataset(cfg)} cannot be read: {reason_of(error)}") from error


def _describe_dataset(cfg: Mapping) -> str:
    keys = ("data_root", "ann_file", "data_prefix")
    return f"data set {cfg.get('type')} ({ {key: cfg[key] for key in keys if cfg.get(key)} })"


def build_dataset(cfg: Mapping | Dataset) -> Dataset:
    """Build a data set and those that it wraps; COCO's check their file while they read it."""
    if not isinstance(cfg, Mapping):
        return cfg
    cfg = dict(cfg)
    if "dataset" in cfg:
        cfg["dataset"] = build_dataset(cfg["dataset"])
    if "datasets" in cfg:
        cfg["datasets"] = [build_dataset(each) for each in cfg["datasets"]]
    with DATASETS.switch_scope_and_registry(None) as registry:
        kind = registry.get(cfg["type"]) if isinstance(cfg["type"], str) else cfg["type"]
    load = getattr(kind, "load_data_list", None)
    if getattr(load, "__qualname__", "") != "CocoDataset.load_data_list":
        return DATASETS.build(cfg)
    dataset = DATASETS.build({**cfg, "lazy_init": True})
    check_while_reading(dataset)
    if not cfg.get("lazy_init"):
        dataset.full_init()
    return dataset
