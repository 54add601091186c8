"""Stop training at the first loss that is not a finite number."""

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor


class InvalidLossError(RuntimeError):
    """A loss is NaN or infinite; the message names the iteration and the loss."""


@HOOKS.register_module()
class LossCheckHook(Hook):
    """Stop training when a loss is NaN or infinite, before that iteration is saved.

    Losses are looked at as they were before scaling, so iterations that mixed precision skips
    because gradients overflowed go on as usual. Of several processes all stop at the same
    iteration, so none of them saves weights that the gradients of another one spoilt.
    """

    # Before the weights enter averages (EMAHook) and checkpoints.
    priority = "VERY_HIGH"

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        """Check what the model's ``train_step`` returned.

        Raises:
            InvalidLossError: If a loss of any process is not finite; on every process.
        """
        # By name, those that mmengine adds up to the loss, and their sum.
        named = {name: value for name, value in (outputs or {}).items() if "loss" in name}
        losses = {name: torch.as_tensor(v).detach().float() for name, v in named.items()}
        if not losses:
            return
        is_invalid = (~torch.stack(list(losses.values())).isfinite()).any().int()
        all_reduce(is_invalid, op="max")
        if is_invalid:
            said = ", ".join(text for text in all_gather_object(_describe(losses)) if text)
            raise InvalidLossError(
                f"training stopped at iteration {runner.iter + 1}: {said}; a lower learning rate "
                "or gradient clipping may help, --cfg-options check_loss=False goes on regardless"
            )


def _describe(losses: dict[str, Tensor]) -> str:
    """Name the invalid losses of this process: the parts of a sum rather than the sum."""
    invalid = {name: float(value) for name, value in losses.items() if not value.isfinite()}
    parts = {name: value for name, value in invalid.items() if name != "loss"} or invalid
    said = ", ".join(f"{name} is {value}" for name, value in parts.items())
    return f"{said} in process {get_rank()}" if said and get_world_size() > 1 else said
