"""Training with FSDP: parameters, gradients and optimizer state shared out among processes.

mmengine's strategy does the sharding. What it gets wrong is mended here:

- it builds the optimizer after the sharding, when every parameter has one axis and another name,
  so that the weight decay and the learning rates of single parameters go astray;
- it clips gradients by the norm of a process's own share;
- its full checkpoints crash or hold wrong values on a CPU, and its resuming passes arguments in the
  order of torch 2.0.
"""

from functools import partial
from pathlib import Path

import torch
from mmengine._strategy.fsdp import FSDPStrategy
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.optim import BaseOptimWrapper
from mmengine.registry import STRATEGIES
from mmengine.runner import FlexibleRunner
from torch import Tensor, nn
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
)
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from crossformer_mm import launch
from crossformer_mm.checkpoint_writing import own_memory
from crossformer_mm.models import CrossFormerBlock
from crossformer_mm.runner import DataCheckingRunner
from crossformer_mm.whole_files import replace_when_complete


def build_fsdp_runner(cfg: Config) -> FlexibleRunner:
    """Build the runner that trains the config's model with FSDP; to be run under torchrun.

    Args:
        cfg: A config as for ``tools/train.py``. ``resume=True`` goes on from the last checkpoint
            of the work directory. Changed in place.
    """
    cfg.launcher = "pytorch"
    replaced = []
    if not torch.cuda.is_available():
        torch.distributed.init_process_group("gloo")
        replaced = launch.replace_gpu_only_parts(cfg)
    cfg.strategy = dict(type="CrossFormerFSDPStrategy")
    runner = FSDPRunner.from_cfg(cfg)
    launch.register_training_hooks(runner, cfg)
    launch.log_devices(cfg.launcher, replaced)
    return runner


class FSDPRunner(FlexibleRunner):
    """mmengine's runner for strategies, with the data loaders of the tools' runner."""

    build_dataloader = staticmethod(DataCheckingRunner.build_dataloader)

    def save_checkpoint(self, *args: object, meta: dict | None = None, **kwargs: object) -> None:
        """Save as mmengine does, but keep the epoch and iteration that ``meta`` gives.

        When validation has found the best epoch so far, the hook writes its checkpoint again;
        mmengine's runner would count that epoch twice, and resuming would skip the next one.
        """
        self._given_meta = dict(meta or {})
        super().save_checkpoint(*args, meta=meta, **kwargs)

    def call_hook(self, fn_name: str, **kwargs: object) -> None:
        """Call all hooks; before a checkpoint is saved, put right where it is in the training."""
        if fn_name == "before_save_checkpoint":
            kwargs["checkpoint"]["meta"].update(self._given_meta)
        super().call_hook(fn_name, **kwargs)


@STRATEGIES.register_module()
class CrossFormerFSDPStrategy(FSDPStrategy):
    """mmengine's FSDP with a unit for each block, and checkpoints of one file as usual.

    Args:
        model_wrapper: Further options of mmengine's ``MMFullyShardedDataParallel``.
        **kwargs: Options of mmengine's ``BaseStrategy``.
    """

    def __init__(self, *, model_wrapper: dict | None = None, **kwargs: object) -> None:
        on_gpu = torch.cuda.is_available()
        # Each block is gathered before it runs, and given up after.
        wrapper = dict(type="MMFullyShardedDataParallel", auto_wrap_policy=_each_block)
        if not on_gpu:
            wrapper["device_id"] = torch.device("cpu")
        # On a CPU, offloading copies nothing: it would hand out memory that FSDP uses again.
        where = dict(rank0_only=True, offload_to_cpu=on_gpu)
        gather = dict(
            state_dict_type="FULL_STATE_DICT",
            state_dict_config=FullStateDictConfig(**where),
            optim_state_dict_config=FullOptimStateDictConfig(**where),
        )
        wrapper.update(model_wrapper or {})
        super().__init__(model_wrapper=wrapper, state_dict_cfg=gather, **kwargs)

    def prepare(
        self, model: nn.Module | dict, *, optim_wrapper: dict | None = None, **kwargs: object
    ) -> tuple:
        """Build model, optimizer and schedules, as in mmengine."""
        self._optim_wrapper_cfg = optim_wrapper
        return super().prepare(model, optim_wrapper=optim_wrapper, **kwargs)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        """Build the optimizer while the parameters have their own shapes and names, then shard.

        The parameters stay the same objects.
        """
        if self._optim_wrapper_cfg is not None:
            self._built = super().build_optim_wrapper(self._optim_wrapper_cfg, model)
        return super()._wrap_model(model)

    def build_optim_wrapper(self, optim_wrapper: dict, model: nn.Module) -> BaseOptimWrapper:
        """Take the optimizer that was built before, and have it clip by the norm of all shares."""
        if getattr(self._built, "clip_func", None) is nn.utils.clip_grad_norm_:
            self._built.clip_func = partial(_clip_by_norm_of_all, model)
        return self._built

    def model_state_dict(self) -> dict:
        """The weights: all of them in process 0, none elsewhere.

        FSDP hangs marks on the tensors, which the safe loader would refuse in a file.
        """
        weights = super().model_state_dict()
        weights.update(own_memory(weights))
        return weights

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Hand every process its share of the optimizer's state."""
        optimizer = self.optim_wrapper.optimizer
        share = FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, state_dict)
        self.optim_wrapper.load_state_dict(share)

    def load_checkpoint(self, filename: str, **kwargs: object) -> dict:
        """Read a checkpoint on the CPU, as a GPU may not hold all of it; otherwise as mmengine."""
        return super().load_checkpoint(filename, **{**kwargs, "map_location": "cpu"})

    def save_checkpoint(self, filename: str, **kwargs: object) -> None:
        """Write a checkpoint whole or not at all; arguments as in mmengine.

        All processes must call this: each has a share.
        """
        if not is_main_process():
            return super().save_checkpoint(filename, **kwargs)
        with replace_when_complete(Path(filename)) as temporary:
            super().save_checkpoint(str(temporary), **kwargs)


_each_block = partial(transformer_auto_wrap_policy, transformer_layer_cls={CrossFormerBlock})


def _clip_by_norm_of_all(
    model: FullyShardedDataParallel,
    parameters: list[nn.Parameter],
    max_norm: float,
    norm_type: float = 2.0,
) -> Tensor:
    """Clip as :func:`torch.nn.utils.clip_grad_norm_` does where every process has everything."""
    return model.clip_grad_norm_(max_norm, norm_type)
