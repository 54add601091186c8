"""Stop training at the first loss that is not a finite number."""

from typing import TYPE_CHECKING

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

if TYPE_CHECKING:
    # The backbone alone is to need no runner, whose import takes memory.
    from mmengine.runner import Runner


class InvalidLossError(RuntimeError):
    """A loss is NaN or infinite; the message names the iteration and the loss."""


@HOOKS.register_module()
class LossCheckHook(Hook):
    """Stop training when a loss is NaN or infinite, before that iteration is saved.

    Every loss is checked after every iteration. Mixed precision makes no difference: losses are
    looked at as they were before scaling, so iterations that the scaler skips because gradients
    overflowed go on as usual.

    Of several processes all stop at the same iteration, so none of them saves weights that the
    gradients of another one spoilt.
    """

    # Before the weights enter averages (EMAHook) and checkpoints.
    priority = "VERY_HIGH"

    def after_train_iter(
        self,
        runner: "Runner",
        batch_idx: int,
        data_batch: object = None,
        outputs: dict[str, Tensor] | None = None,
    ) -> None:
        """Check what the model's ``train_step`` returned.

        Raises:
            InvalidLossError: If a loss of any process is not finite; on every process.
        """
        # Those that mmengine adds up to the loss, and their sum.
        losses = {
            name: torch.as_tensor(value).detach().float()
            for name, value in (outputs or {}).items()
            if "loss" in name
        }
        if losses and _is_invalid_anywhere(losses):
            raise InvalidLossError(
                f"training stopped at iteration {runner.iter + 1}: {_describe_all(losses)}; "
                "a lower learning rate or gradient clipping may help, "
                "--cfg-options check_loss=False goes on regardless"
            )


def _is_invalid_anywhere(losses: dict[str, Tensor]) -> bool:
    invalid = (~torch.stack(list(losses.values())).isfinite()).any().int()
    all_reduce(invalid, op="max")
    return bool(invalid)


def _describe_all(losses: dict[str, Tensor]) -> str:
    """Name the invalid losses of all processes."""
    own = _describe(losses)
    if own and get_world_size() > 1:
        own += f" in process {get_rank()}"
    return ", ".join(text for text in all_gather_object(own) if text)


def _describe(losses: dict[str, Tensor]) -> str:
    invalid = {name: float(v) for name, v in losses.items() if not v.isfinite()}
    parts = {name: value for name, value in invalid.items() if name != "loss"}
    return ", ".join(f"{name} is {value}" for name, value in (parts or invalid).items())
