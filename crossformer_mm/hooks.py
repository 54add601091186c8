"""Hooks that the tools add to every run."""

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from crossformer_mm.checkpoint import describe_mismatch, extract_state_dict


@HOOKS.register_module()
class CheckpointMatchHook(Hook):
    """Say how much of a loaded checkpoint fits the model, and stop when too little does.

    Args:
        all_weights_needed: Whether every weight of the model must come from the checkpoint, as for
            testing. Otherwise half of them must, as for fine-tuning with other classes.
    """

    def __init__(self, all_weights_needed: bool) -> None:
        self.all_weights_needed = all_weights_needed

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the checkpoint with the model, before the runner copies the weights.

        Raises:
            ValueError: If too little fits; the message names the first weights that do not.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if isinstance(model, BaseTTAModel):
            model = model.module
        own = model.state_dict()
        weights = extract_state_dict(checkpoint, "that was loaded")
        matched = [n for n in own if n in weights and weights[n].shape == own[n].shape]
        runner.logger.info(f"Checkpoint: {len(matched)} of the model's {len(own)} weights match")
        problems = describe_mismatch(weights, own)
        needed = len(own) if self.all_weights_needed else len(own) / 2
        if len(matched) < needed:
            raise ValueError(f"the checkpoint does not fit this model: {problems}")
        if problems:
            runner.logger.warning(f"Checkpoint: {problems}")
