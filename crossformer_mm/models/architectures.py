"""The eight architectures of the two papers, and the check of a user's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STAGES = 4

# (embed_dims, depths, num_heads, drop_path_rate), CrossFormer table 2 and CrossFormer++ table 3
_SIZES = {
    "tiny": (64, (1, 1, 8, 6), (2, 4, 8, 16), 0.1),
    "small": (96, (2, 2, 6, 2), (3, 6, 12, 24), 0.2),
    "base": (96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3),
    "large": (128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5),
    "pp-small": (64, (2, 2, 18, 2), (2, 4, 8, 16), 0.2),
    "pp-base": (96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3),
    "pp-large": (128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5),
    "pp-huge": (128, (6, 6, 18, 2), (4, 8, 16, 32), 0.5),
}

SHORT_NAMES = {
    "t": "tiny",
    "s": "small",
    "b": "base",
    "l": "large",
    "pp-s": "pp-small",
    "pp-b": "pp-base",
    "pp-l": "pp-large",
    "pp-h": "pp-huge",
}


def _published(name: str) -> dict:
    embed_dims, depths, num_heads, drop_path_rate = _SIZES[name]
    plus_plus = name.startswith("pp-")
    return {
        "embed_dims": embed_dims,
        "depths": depths,
        "num_heads": num_heads,
        "group_size": (4, 4, 14, 7) if plus_plus else (7, 7, 7, 7),
        "interval": (4, 2, 1, 1) if plus_plus else (8, 4, 2, 1),
        "amplitude_cooling": plus_plus,
        "drop_path_rate": drop_path_rate,
    }


ARCH_ZOO = {name: _published(name) for name in _SIZES}

_REQUIRED = ("embed_dims", "depths", "num_heads")
_OPTIONAL = ("group_size", "interval", "amplitude_cooling", "drop_path_rate")

PerBlock = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Architecture:
    """A checked architecture; ``group_size`` and ``interval`` hold a value for every block."""

    embed_dims: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    group_size: PerBlock
    interval: PerBlock
    amplitude_cooling: bool
    drop_path_rate: float

    def channels(self, stage: int) -> int:
        """Channels of a stage's tokens."""
        return self.embed_dims * 2**stage


def resolve_architecture(
    arch: str | Mapping,
    group_size: int | Sequence | None = None,
    interval: int | Sequence | None = None,
    drop_path_rate: float | None = None,
) -> Architecture:
    """Look up or check an architecture; arguments that are not None replace its own values.

    Args:
        arch: A name of :data:`ARCH_ZOO` or :data:`SHORT_NAMES`, or a mapping with ``embed_dims``,
            ``depths`` and ``num_heads`` (four each for the last two), and optionally
            ``group_size``, ``interval``, ``amplitude_cooling`` and ``drop_path_rate``.
        group_size: One number, one per stage, or for a stage one per block.
        interval: As ``group_size``.
        drop_path_rate: Rate at the last block.

    Raises:
        ValueError: If a value is out of range, missing or of the wrong length.
        TypeError: If a value is of the wrong type.
    """
    entries = {**_lookup(arch), **_given(group_size=group_size, interval=interval)}
    entries.update(_given(drop_path_rate=drop_path_rate))
    for name in ("group_size", "interval"):
        if name not in entries:
            raise ValueError(f"{name} is missing: give it in arch or as an argument")
    depths = _per_stage("arch['depths']", entries["depths"])
    architecture = Architecture(
        embed_dims=entries["embed_dims"],
        depths=depths,
        num_heads=_per_stage("arch['num_heads']", entries["num_heads"]),
        group_size=_per_block("group_size", entries["group_size"], depths),
        interval=_per_block("interval", entries["interval"], depths),
        amplitude_cooling=entries.get("amplitude_cooling", False),
        drop_path_rate=entries.get("drop_path_rate", 0.0),
    )
    _check_widths(architecture)
    return architecture


def full_name(arch: str) -> str:
    """Return the name in :data:`ARCH_ZOO` of a published architecture; raise ValueError if none."""
    name = SHORT_NAMES.get(arch.lower(), arch.lower())
    if name not in ARCH_ZOO:
        known = ", ".join([*ARCH_ZOO, *SHORT_NAMES])
        raise ValueError(f"unknown arch {arch!r}: choose one of {known}, or give a dict")
    return name


def _given(**values: object) -> dict:
    return {name: value for name, value in values.items() if value is not None}


def _lookup(arch: str | Mapping) -> dict:
    if isinstance(arch, str):
        return dict(ARCH_ZOO[full_name(arch)])
    if not isinstance(arch, Mapping):
        raise TypeError(f"arch must be a name or a dict, not {arch!r}")
    for name in _REQUIRED:
        if name not in arch:
            raise ValueError(f"arch has no {name!r}: it needs {', '.join(_REQUIRED)}")
    for name in arch:
        if name not in (*_REQUIRED, *_OPTIONAL):
            known = ", ".join((*_REQUIRED, *_OPTIONAL))
            raise ValueError(f"arch has an unknown entry {name!r}: the entries are {known}")
    return dict(arch)


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_positive(name: str, value: object) -> int:
    """Return ``value`` if it is a whole number of at least 1, and raise otherwise."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def _per_stage(name: str, values: object) -> tuple[int, ...]:
    if not _is_sequence(values) or len(values) != STAGES:
        raise ValueError(f"{name} must have {STAGES} entries, one per stage, not {values!r}")
    return tuple(check_positive(f"{name}[{stage}]", value) for stage, value in enumerate(values))


def _per_block(name: str, values: object, depths: Sequence[int]) -> PerBlock:
    if not _is_sequence(values):
        values = (values,) * STAGES
    if len(values) != STAGES:
        raise ValueError(f"{name} must have {STAGES} entries, one per stage, not {values!r}")
    stages = []
    for stage, (value, depth) in enumerate(zip(values, depths, strict=True)):
        blocks = tuple(value) if _is_sequence(value) else (value,) * depth
        if len(blocks) != depth:
            raise ValueError(
                f"{name}[{stage}] must be one number or {depth}, one per block, not {value!r}"
            )
        stages.append(tuple(check_positive(f"{name}[{stage}]", block) for block in blocks))
    return tuple(stages)


def _check_widths(arch: Architecture) -> None:
    check_positive("arch['embed_dims']", arch.embed_dims)
    if arch.embed_dims < 16 or arch.embed_dims % 8:
        raise ValueError(
            "arch['embed_dims'] must be a multiple of 8 and at least 16 (the stem and the "
            f"position bias divide it), not {arch.embed_dims}"
        )
    for stage, heads in enumerate(arch.num_heads):
        if arch.channels(stage) % heads:
            raise ValueError(
                f"arch['num_heads'][{stage}] = {heads} must divide the {arch.channels(stage)} "
                f"channels of stage {stage}"
            )
    if not isinstance(arch.amplitude_cooling, bool):
        raise TypeError(f"amplitude_cooling must be True or False, not {arch.amplitude_cooling!r}")
    if not isinstance(arch.drop_path_rate, (int, float)):
        raise TypeError(f"drop_path_rate must be a number, not {arch.drop_path_rate!r}")
    if not 0 <= arch.drop_path_rate < 1:
        raise ValueError(f"drop_path_rate must be in [0, 1), not {arch.drop_path_rate!r}")
