"""Layer-wise learning rate decay: the nearer a layer is to the image, the slower it learns."""

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from crossformer_mm.models import CrossFormer


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
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        options = dict(paramwise_cfg or {})
        rate = self.decay_rate = options.pop("decay_rate", None)
        if type(rate) not in (int, float) or not 0 < rate <= 1:
            raise ValueError(f"paramwise_cfg.decay_rate must be above 0, at most 1, not {rate!r}")
        optimizer = optim_wrapper_cfg["optimizer"]
        if optimizer.get("lr") is None:
            raise ValueError("layer decay needs the learning rate in optim_wrapper.optimizer.lr")
        # mmengine refuses these multipliers where there is nothing to multiply.
        if optimizer.get("weight_decay") is not None:
            for kind in ("norm", "bias", "flat"):
                options.setdefault(f"{kind}_decay_mult", 0.0)
        # Without any option, mmengine does not call add_params.
        super().__init__(optim_wrapper_cfg, {"bypass_duplicate": False, **options})

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = "", **kwargs: object
    ) -> None:
        """Add the parameters of ``module`` to the groups ``params``, in place.

        mmengine calls this once for the model, and from there for every module in it.
        """
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:
            return
        scales = _learning_rate_scales(module, self.decay_rate)
        for group in params:
            (parameter,) = group["params"]
            group["lr"] = group.get("lr", self.base_lr) * scales.get(parameter, 1.0)
        low, high = (self.base_lr * pick(scales.values()) for pick in (min, max))
        print_log(
            f"Layer decay {self.decay_rate}: learning rates from {low:.3g} in the backbone's stem "
            f"to {high:.3g} in its last block, {self.base_lr:.3g} elsewhere",
            logger="current",
        )


def _learning_rate_scales(model: nn.Module, decay_rate: float) -> dict[nn.Parameter, float]:
    """The factor of each parameter's learning rate, for those in the layers of a CrossFormer."""
    scales = {}
    for backbone in model.modules():
        if not isinstance(backbone, CrossFormer):
            continue
        depth = sum(backbone.arch.depths) + 1
        scales.update(dict.fromkeys(backbone.patch_embed.parameters(), decay_rate**depth))
        for stage in backbone.layers:
            for block in stage.blocks:
                depth -= 1
                scales.update(dict.fromkeys(block.parameters(), decay_rate**depth))
            if hasattr(stage, "downsample"):
                scales.update(dict.fromkeys(stage.downsample.parameters(), decay_rate**depth))
    if not scales:
        raise ValueError("layer decay: the model has no CrossFormer backbone")
    return scales
