"""The CrossFormer and CrossFormer++ backbone, for classification and dense tasks alike."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crossformer_mm.models.architectures import (
    STAGES,
    Architecture,
    check_positive,
    resolve_architecture,
)
from crossformer_mm.models.attention import ATTN_BACKENDS
from crossformer_mm.models.attention.reduced import REDUCTIONS
from crossformer_mm.models.block import CrossFormerBlock
from crossformer_mm.models.cross_scale_embedding import CrossScaleDownsample, CrossScaleStem
from crossformer_mm.models.grouping import LDA_MODES, LONG_RANGES
from crossformer_mm.models.position_bias import POSITION_BIASES
from crossformer_mm.models.position_embedding import AbsolutePositionEmbedding
from crossformer_mm.models.state_dict import (
    MARK,
    PREFIX,
    STRICT,
    VARIANTS,
    check_before_loading,
    load_backbone,
    variant_marks,
)

MIN_IMAGE_SIZE = 32


class CrossFormerStage(nn.Module):
    """The blocks of one stage, SDA and LDA in turn, and the embedding that leads to the next.

    The drop path rate grows linearly from 0 at the model's first block to that of the architecture
    at its last one. The arguments are as in :class:`CrossFormer`, and ``options`` those of all
    blocks alike.
    """

    def __init__(
        self, arch: Architecture, stage: int, cross_scale: bool, with_cp: bool, **options: str
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        depth, blocks_before = arch.depths[stage], sum(arch.depths[:stage])
        drop_path_step = arch.drop_path_rate / max(1, sum(arch.depths) - 1)
        self.blocks = nn.ModuleList(
            CrossFormerBlock(
                embed_dims=arch.channels(stage),
                num_heads=arch.num_heads[stage],
                group_size=arch.group_size[stage][i],
                interval=arch.interval[stage][i],
                long_distance=i % 2 == 1,
                reduction=REDUCTIONS[stage],
                amplitude_cooling=arch.amplitude_cooling and (i + 1) % 3 == 0 and i < depth - 1,
                drop_path_rate=drop_path_step * (blocks_before + i),
                **options,
            )
            for i in range(depth)
        )
        if stage < STAGES - 1:
            self.downsample = CrossScaleDownsample(arch.channels(stage), cross_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks, not the downsampling: (B, H, W, C) -> (B, H, W, C)."""
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class FinalNorm(nn.LayerNorm):
    """The norm after the last stage; its output is a map as tools for activation maps take it."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, C, H, W)."""
        return super().forward(x).permute(0, 3, 1, 2).contiguous()


@MODELS.register_module()
class CrossFormer(BaseModule):
    """CrossFormer (ICLR 2022, arXiv 2108.00154) and CrossFormer++ (TPAMI 2023, arXiv 2303.06908).

    The backbone returns the feature maps of the stages in ``out_indices``, finest first, each
    before the embedding layer that follows the stage. Its parameters have the names of the
    authors' checkpoints.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, ``'large'``, ``'pp-small'``, ``'pp-base'``,
            ``'pp-large'`` or ``'pp-huge'``, their short forms (``'s'``, ``'pp-s'``, ...), or a
            dict, see :func:`.resolve_architecture`.
        group_size: Tokens along a side of a group: one number, one per stage, or for a stage a
            sequence with one per block. None: the architecture's own.
        interval: Distance between the tokens of a long distance group, in the same forms.
        lda_mode: How long distance attention makes groups on maps of any size:
            ``'fixed_interval'`` (the published dense checkpoints; cost grows with the square of
            the area), ``'fixed_group'`` (CrossFormer++ classification; linear) or
            ``'adaptive_interval'`` (linear, with a view of the whole map in each group;
            ``interval`` is chosen from the map's size). At 224 x 224 with groups of 7 all are the
            same. A model keeps the rule that it was trained with.
        position_bias: ``'dpb'`` (dynamic position bias), ``'dpb-residual'`` (with residuals in its
            MLP), ``'rpb'`` (a learned table, for groups of up to ``group_size``), ``'ape'`` (an
            absolute position embedding instead) or ``'none'`` (CrossFormer, table 6).
        long_range: ``'lda'``, or in its place ``'swin'`` (windows shifted by half of
            ``group_size``) or ``'pvt'`` (every block attends to a map reduced 8, 4, 2 and 1 times,
            without groups and their bias) (CrossFormer, table 5).
        cross_scale: Whether embedding layers have kernels of several sizes; False leaves the
            smallest (CrossFormer, table 5).
        in_channels: Channels of the image.
        out_indices: Stages whose maps are returned, in rising order.
        final_norm: Whether a LayerNorm follows the last stage, as classification needs it. Then
            3 must be in ``out_indices``.
        drop_path_rate: Stochastic depth rate of the last block, growing linearly from 0 at the
            first. None: the architecture's own.
        frozen_stages: 0 freezes the stem, n the stem and the first n stages, with the embedding
            layers after them. -1: none.
        with_cp: Recompute each block in the backward pass to save memory.
        attn_backend: ``'auto'``, ``'eager'``, ``'sdpa'``, ``'chunked'`` or ``'triton'``; see
            :func:`.choose_backend`. All give the same result.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` loads a checkpoint that must fit;
            see :func:`crossformer_mm.models.state_dict.load_backbone`.

    Raises:
        ValueError: If an argument is out of range; the message names it.

    Examples:
        >>> backbone = CrossFormer('small').eval()
        >>> [tuple(m.shape) for m in backbone(torch.rand(1, 3, 224, 320))]
        [(1, 96, 56, 80), (1, 192, 28, 40), (1, 384, 14, 20), (1, 768, 7, 10)]
    """

    def __init__(
        self,
        arch: str | Mapping = "small",
        group_size: int | Sequence | None = None,
        interval: int | Sequence | None = None,
        lda_mode: str = "fixed_interval",
        position_bias: str = "dpb",
        long_range: str = "lda",
        cross_scale: bool = True,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        final_norm: bool = False,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        with_cp: bool = False,
        attn_backend: str = "auto",
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.arch = resolve_architecture(arch, group_size, interval, drop_path_rate)
        _check_choice("lda_mode", lda_mode, LDA_MODES)
        _check_choice("position_bias", position_bias, POSITION_BIASES)
        _check_choice("long_range", long_range, LONG_RANGES)
        _check_choice("attn_backend", attn_backend, ATTN_BACKENDS)
        if long_range == "pvt" and position_bias in ("dpb-residual", "rpb"):
            raise ValueError(
                "long_range='pvt' has no groups, so no bias within them: position_bias must be "
                f"'dpb', which then adds nothing, 'ape' or 'none', not {position_bias!r}"
            )
        if not isinstance(cross_scale, bool):
            raise TypeError(f"cross_scale must be True or False, not {cross_scale!r}")
        _check_out_indices(out_indices, final_norm)
        if type(frozen_stages) is not int or not -1 <= frozen_stages <= STAGES:
            raise ValueError(f"frozen_stages must be from -1 to {STAGES}, not {frozen_stages!r}")
        if not isinstance(with_cp, bool):
            raise TypeError(f"with_cp must be True or False, not {with_cp!r}")
        self.in_channels = check_positive("in_channels", in_channels)
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages

        embed_dims = self.arch.embed_dims
        pos_embed = AbsolutePositionEmbedding(embed_dims) if position_bias == "ape" else None
        self.patch_embed = CrossScaleStem(in_channels, embed_dims, cross_scale, pos_embed)
        blocks = dict(lda_mode=lda_mode, long_range=long_range)
        blocks |= dict(position_bias=position_bias, attn_backend=attn_backend)
        self.layers = nn.ModuleList(
            CrossFormerStage(self.arch, stage, cross_scale, with_cp, **blocks)
            for stage in range(STAGES)
        )
        self.position_bias, self.long_range = position_bias, long_range
        self.cross_scale = cross_scale
        variant = {name: getattr(self, name) for name in VARIANTS}
        for mark in variant_marks(**variant):
            self.register_buffer(mark, torch.empty(0))
        if final_norm:
            self.norm = FinalNorm(self.arch.channels(STAGES - 1))
        self.final_norm = final_norm
        self._built_on_meta = self.patch_embed.norm.weight.is_meta
        if not self._built_on_meta:
            self.apply(_init_linear)
        self._freeze()

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the returned maps, what a neck takes as ``in_channels``."""
        return tuple(self.arch.channels(stage) for stage in self.out_indices)

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``; without one, set what was built on the meta device.

        Elsewhere, a new backbone has its random weights already.

        Raises:
            CheckpointError: If the checkpoint does not fit.
            ValueError: If ``init_cfg`` has entries that this backbone does not take.
        """
        pretrained = _find_pretrained(self.init_cfg)
        if pretrained is not None:
            from mmengine.runner import CheckpointLoader  # imports OpenCV

            file, prefix = pretrained
            # Silent, since the name may be a URL with a password.
            checkpoint = CheckpointLoader.load_checkpoint(file, "cpu", logger="silent")
            load_backbone(self, checkpoint, file, prefix)
        elif self.init_cfg:
            super().init_weights()
        elif self._built_on_meta:
            for module in self.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            self.apply(_init_linear)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            image: (B, in_channels, H, W), H and W at least 32.

        Returns:
            For each stage s of ``out_indices`` a map (B, D * 2^s, h, w), where h is H divided by
            4 * 2^s and rounded up, and w likewise.

        Raises:
            ValueError: If the image has another number of axes or channels, or is too small.
        """
        shape = tuple(image.shape)
        if len(shape) != 4 or shape[1] != self.in_channels:
            raise ValueError(f"image must be (B, {self.in_channels}, H, W), not {shape}")
        if min(shape[2:]) < MIN_IMAGE_SIZE:
            least = f"{MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE}"
            raise ValueError(f"image must be at least {least} pixels, not {shape[2]} x {shape[3]}")
        x = self.patch_embed(image)
        maps = []
        for index in range(self.out_indices[-1] + 1):
            if index > 0:
                x = self.layers[index - 1].downsample(x)  # type: ignore[operator]  # a stage's
            x = self.layers[index](x)
            if index in self.out_indices:
                has_norm = self.final_norm and index == STAGES - 1
                maps.append(self.norm(x) if has_norm else x.permute(0, 3, 1, 2).contiguous())
        return tuple(maps)

    def train(self, mode: bool = True) -> "CrossFormer":
        """Switch between training and evaluation; frozen stages stay in evaluation."""
        super().train(mode)
        self._freeze()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: Mapping, *args: Any
    ) -> None:
        # mmengine only warns about weights that do not fit, and goes on with random ones.
        if local_metadata.get(STRICT):
            check_before_loading(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        # PyTorch's own load_state_dict takes weights that carry no marks, whoever made them.
        missing = args[1]
        missing[:] = [n for n in missing if not n.removeprefix(prefix).startswith(MARK)]

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in (self.patch_embed, *self.layers[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")


def _check_out_indices(out_indices: Sequence[int], final_norm: bool) -> None:
    indices = list(out_indices) if isinstance(out_indices, Sequence) else []
    in_range = all(type(i) is int and 0 <= i < STAGES for i in indices)
    if not indices or not in_range or indices != sorted(set(indices)):
        raise ValueError(f"out_indices must be rising stages from 0 to 3, not {out_indices!r}")
    if final_norm and STAGES - 1 not in indices:
        raise ValueError(f"final_norm needs stage 3 in out_indices, not {out_indices!r}")


def _find_pretrained(init_cfg: Any) -> tuple[str, str] | None:
    """The file and prefix of the forms of ``init_cfg`` that mmengine knows, or None."""
    forms = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]
    kinds = [form.get("type") for form in forms if isinstance(form, Mapping)]
    if not any(kind in ("Pretrained", "PretrainedInit", PretrainedInit) for kind in kinds):
        return None
    known, entry = {"type", "checkpoint", "prefix", "map_location"}, forms[0]
    if len(forms) > 1 or "checkpoint" not in entry or entry.keys() - known:
        raise ValueError(
            "init_cfg must be dict(type='Pretrained', checkpoint=FILE), with prefix if the names "
            f"in the file have another than 'backbone.', not {init_cfg!r}"
        )
    prefix = entry.get("prefix") or PREFIX
    return entry["checkpoint"], prefix.rstrip(".") + "."


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
