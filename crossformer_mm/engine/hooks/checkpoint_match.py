"""Compare a loaded checkpoint with the model and the training, and stop where too little fits."""

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner

from crossformer_mm.engine.hooks.training_match import BATCH, check_training, samples_per_iteration
from crossformer_mm.models.state_dict import compare_weights, extract_state_dict
from crossformer_mm.utils.errors import CheckpointError


class CheckpointMatchHook(Hook):
    """Say how much of a loaded checkpoint fits the model, and stop when too little does.

    Args:
        all_weights_needed: Whether every weight of the model must come from the checkpoint, as for
            testing. Otherwise half of them must, as for fine-tuning with other classes.
        resumes: Whether the checkpoint must hold all weights, and the state of a training too.
    """

    def __init__(self, all_weights_needed: bool, resumes: bool) -> None:
        self.all_weights_needed = all_weights_needed
        self.resumes = resumes

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note what resuming compares beside the states."""
        checkpoint["meta"][BATCH] = samples_per_iteration(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the checkpoint with the model, before the runner copies the weights.

        Raises:
            CheckpointError: If too little fits, or there is no training to go on with.
        """
        if self.resumes and "message_hub" not in checkpoint:
            raise CheckpointError(
                "the checkpoint to resume holds weights, but not the state of a training by "
                "mmengine: start from them with --pretrained or --cfg-options load_from=FILE"
            )
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        own = model.state_dict()
        weights = extract_state_dict(checkpoint, "that was loaded")
        matched, problems = compare_weights(weights, own)
        runner.logger.info(f"Checkpoint: {matched} of the model's {len(own)} weights match")
        needed = len(own) if self.all_weights_needed or self.resumes else len(own) / 2
        if matched < needed:
            raise CheckpointError(f"the checkpoint does not fit this model: {problems}")
        if problems:
            runner.logger.warning(f"Checkpoint: {problems}")
        if self.resumes:
            check_training(runner, checkpoint)
