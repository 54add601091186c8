"""What mmengine's checkpoints lack: the place in the epoch, and gradients without a step yet."""

import torch
from mmengine.dist import all_reduce, gather, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn


class TrainingStateHook(Hook):
    """Saves both, and takes them from a checkpoint to resume.

    Args:
        resumes: Whether the training resumes from a checkpoint.
    """

    def __init__(self, resumes: bool) -> None:
        self.resumes = resumes
        self.gradients: list[dict[str, Tensor]] = []
        self.is_validating = False

    def collect(self, runner: Runner) -> None:
        """Have process 0 take the gradients of all processes, which all call this before it saves.

        While they validate, these do not change, and process 0 may save alone.
        """
        if not self.is_validating:
            self.gradients = gather_gradients(_unwrap(runner.model))

    def before_val(self, runner: Runner) -> None:
        """Collect for what process 0 may save during the validation."""
        self.collect(runner)
        self.is_validating = True

    def after_val(self, runner: Runner) -> None:
        """Let each checkpoint have new gradients again."""
        self.is_validating = False

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add what is missing, unless the checkpoint is one of weights only."""
        if "optimizer" not in checkpoint:
            return
        checkpoint["meta"]["iters_of_epoch"] = getattr(runner.train_loop, "iters_done", 0)
        if self.gradients:
            checkpoint["gradients"] = self.gradients

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Go on at the place, and with the gradients, of a checkpoint to resume."""
        if not self.resumes:
            return
        runner.train_loop.iters_done = (checkpoint.get("meta") or {}).get("iters_of_epoch", 0)
        if shares := checkpoint.get("gradients"):
            restore_gradients(_unwrap(runner.model), shares)
            self.gradients = shares

    def before_train(self, runner: Runner) -> None:
        """Say so where mmengine has warned that gradients are lost."""
        if self.gradients:
            runner.logger.info("No gradient is lost: the checkpoint holds those without a step yet")
            self.gradients = []


def gather_gradients(model: nn.Module) -> list[dict[str, Tensor]]:
    """Return on process 0 the gradients of each process by the parameters' names, on the CPU.

    Empty on the other processes, and where all gradients have led to a step.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    has_gradient = torch.tensor([p.grad is not None for p in parameters.values()]).int()
    all_reduce(has_gradient, op="max")
    shares: list[dict[str, Tensor]] = []
    for (name, parameter), is_there in zip(parameters.items(), has_gradient.tolist(), strict=True):
        if is_there:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gathered = gather(own, dst=0)
            shares = shares or [{} for _ in gathered]
            for share, gradient in zip(shares, gathered, strict=True):
                share[name] = gradient.cpu()
    return shares


def restore_gradients(model: nn.Module, shares: list[dict[str, Tensor]]) -> None:
    """Give this process its own gradients; the mean of all if there were more or fewer processes.

    The step takes the mean over the processes.
    """
    own = shares[get_rank() % len(shares)]
    if len(shares) != get_world_size():
        own = {name: torch.stack([share[name] for share in shares]).mean(0) for name in own}
    for name, parameter in model.named_parameters():
        if name in own:
            parameter.grad = own[name].to(parameter)


def _unwrap(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model
