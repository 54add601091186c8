"""Layer-wise learning rate decay: the nearer a layer is to the image, the slower it learns."""

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from crossformer_mm.models import CrossFormer

NO_WEIGHT_DECAY = {"norm_decay_mult": 0.0, "bias_decay_mult": 0.0, "flat_decay_mult": 0.0}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class CrossFormerLayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Give every layer of a CrossFormer backbone its own learning rate.

    Of N blocks in all, block i (from 1) learns at ``decay_rate ** (N + 1 - i)`` times the
    optimizer's rate, the stem at ``decay_rate ** (N + 1)`` times. The embedding layer after a
    stage goes with the stage's last block, as in ``frozen_stages``. The norm after the last stage,
    and everything outside the backbone, learns at the full rate.

    Norms, biases and other parameters with one axis get no weight decay, unless ``paramwise_cfg``
    says otherwise.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper, with the optimizer's.
        paramwise_cfg: ``decay_rate``, above 0 and at most 1, and the options of mmengine's
            :class:`DefaultOptimWrapperConstructor`. Its multipliers of learning rates multiply
            those of the layers.

    Raises:
        ValueError: If ``decay_rate`` is missing or out of range, the optimizer's config has no
            learning rate, or (when called) the model has no CrossFormer.

    Examples:
        >>> optim_wrapper = dict(
        ...     constructor="CrossFormerLayerDecayConstructor",
        ...     optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
        ...     paramwise_cfg=dict(decay_rate=0.8),
        ... )
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        options = dict(paramwise_cfg or {})
        self.decay_rate = _check_decay_rate(options.pop("decay_rate", None))
        optimizer = optim_wrapper_cfg["optimizer"]
        if optimizer.get("lr") is None:
            raise ValueError("layer decay needs the learning rate in optim_wrapper.optimizer.lr")
        # mmengine refuses these multipliers where there is nothing to multiply.
        if optimizer.get("weight_decay") is not None:
            options = {**NO_WEIGHT_DECAY, **options}
        # Without any option, mmengine does not call add_params.
        super().__init__(optim_wrapper_cfg, {"bypass_duplicate": False, **options})

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = "", **kwargs: object
    ) -> None:
        """Add the parameters of ``module`` to the groups ``params``, in place.

        mmengine calls this once for the model, and from there for every module in it.
        """
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix == "":
            self._scale_learning_rates(params, learning_rate_scales(module, self.decay_rate))

    def _scale_learning_rates(self, params: list[dict], scales: dict[nn.Parameter, float]) -> None:
        for group in params:
            (parameter,) = group["params"]
            group["lr"] = group.get("lr", self.base_lr) * scales.get(parameter, 1.0)
        low, high = (self.base_lr * scale for scale in (min(scales.values()), max(scales.values())))
        print_log(
            f"Layer decay {self.decay_rate}: learning rates from {low:.3g} in the backbone's stem "
            f"to {high:.3g} in its last block, {self.base_lr:.3g} elsewhere",
            logger="current",
        )


def learning_rate_scales(model: nn.Module, decay_rate: float) -> dict[nn.Parameter, float]:
    """The factor of each parameter's learning rate, for those in the layers of a CrossFormer.

    Raises:
        ValueError: If there is no CrossFormer in ``model``.
    """
    backbones = [module for module in model.modules() if isinstance(module, CrossFormer)]
    if not backbones:
        raise ValueError("layer decay: the model has no CrossFormer backbone")
    scales = {}
    for backbone in backbones:
        layers = _layers(backbone)
        for index, parts in enumerate(layers):
            for part in parts:
                scales.update(dict.fromkeys(part.parameters(), decay_rate ** (len(layers) - index)))
    return scales


def _layers(backbone: CrossFormer) -> list[list[nn.Module]]:
    """The stem, then each block; with a stage's last block the embedding layer after it."""
    layers = [[backbone.patch_embed]]
    for stage in backbone.layers:
        layers += [[block] for block in stage.blocks]
        if hasattr(stage, "downsample"):
            layers[-1].append(stage.downsample)
    return layers


def _check_decay_rate(decay_rate: object) -> float:
    is_number = isinstance(decay_rate, (int, float)) and not isinstance(decay_rate, bool)
    if not is_number or not 0 < decay_rate <= 1:
        raise ValueError(f"paramwise_cfg.decay_rate must be above 0, at most 1, not {decay_rate!r}")
    return float(decay_rate)
