"""The eight architectures of the two papers, and the check of a user's own."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import TypeGuard

STAGES = 4

PerBlock = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Architecture:
    """A checked architecture; ``group_size`` and ``interval`` hold a value for every block."""

    embed_dims: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    group_size: PerBlock
    interval: PerBlock
    amplitude_cooling: bool = False
    drop_path_rate: float = 0.0

    def channels(self, stage: int) -> int:
        """Channels of a stage's tokens."""
        return self.embed_dims * 2**stage


def _published(
    embed_dims: int, depths: tuple, num_heads: tuple, drop_path_rate: float, plus_plus: bool = False
) -> dict:
    return {
        "embed_dims": embed_dims,
        "depths": depths,
        "num_heads": num_heads,
        "group_size": (4, 4, 14, 7) if plus_plus else (7, 7, 7, 7),
        "interval": (4, 2, 1, 1) if plus_plus else (8, 4, 2, 1),
        "amplitude_cooling": plus_plus,
        "drop_path_rate": drop_path_rate,
    }


# CrossFormer, table 2, and CrossFormer++, table 3
ARCH_ZOO = {
    "tiny": _published(64, (1, 1, 8, 6), (2, 4, 8, 16), 0.1),
    "small": _published(96, (2, 2, 6, 2), (3, 6, 12, 24), 0.2),
    "base": _published(96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3),
    "large": _published(128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5),
    "pp-small": _published(64, (2, 2, 18, 2), (2, 4, 8, 16), 0.2, plus_plus=True),
    "pp-base": _published(96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3, plus_plus=True),
    "pp-large": _published(128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5, plus_plus=True),
    "pp-huge": _published(128, (6, 6, 18, 2), (4, 8, 16, 32), 0.5, plus_plus=True),
}
# 't' for tiny, 'pp-s' for pp-small
SHORT_NAMES = {name[: name.find("-") + 2]: name for name in ARCH_ZOO}


def resolve_architecture(
    arch: str | Mapping,
    group_size: int | Sequence | None = None,
    interval: int | Sequence | None = None,
    drop_path_rate: float | None = None,
) -> Architecture:
    """Look up or check an architecture; arguments that are not None replace its own values.

    Args:
        arch: A name such as ``'small'`` or ``'s'``, or a mapping with the fields of
            :class:`Architecture`; the last two of them may be left out.
        group_size: One number, one per stage, or for a stage one per block.
        interval: As ``group_size``.
        drop_path_rate: Rate at the last block.

    Raises:
        ValueError: If a value is out of range, missing or of the wrong length.
        TypeError: If a value is of the wrong type.
    """
    entries = ARCH_ZOO[full_name(arch)] if isinstance(arch, str) else arch
    if not isinstance(entries, Mapping):
        raise TypeError(f"arch must be a name or a dict, not {arch!r}")
    given = dict(group_size=group_size, interval=interval, drop_path_rate=drop_path_rate)
    entries = {**entries, **{name: v for name, v in given.items() if v is not None}}
    known = {field.name: field for field in fields(Architecture)}
    for name in entries:
        if name not in known:
            raise ValueError(f"arch has no entry {name!r}: the entries are {', '.join(known)}")
    for name, field in known.items():
        if field.default is MISSING and name not in entries:
            raise ValueError(f"{name} is missing: arch has no {name!r}")
    for name in ("depths", "num_heads"):
        values = enumerate(_per_stage(f"arch[{name!r}]", entries[name]))
        entries[name] = tuple(check_positive(f"arch[{name!r}][{i}]", v) for i, v in values)
    for name in ("group_size", "interval"):
        entries[name] = _per_block(name, entries[name], entries["depths"])
    architecture = Architecture(**entries)
    _check_widths(architecture)
    return architecture


def full_name(arch: str) -> str:
    """Return the name in :data:`ARCH_ZOO` of a published architecture; raise ValueError if none."""
    name = SHORT_NAMES.get(arch.lower(), arch.lower())
    if name not in ARCH_ZOO:
        known = ", ".join([*ARCH_ZOO, *SHORT_NAMES])
        raise ValueError(f"unknown arch {arch!r}: choose one of {known}, or give a dict")
    return name


def _is_sequence(value: object) -> TypeGuard[Sequence]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_positive(name: str, value: object) -> int:
    """Return ``value`` if it is a whole number of at least 1, and raise otherwise."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def _per_stage(name: str, values: object) -> Sequence:
    if not _is_sequence(values) or len(values) != STAGES:
        raise ValueError(f"{name} must have {STAGES} entries, one per stage, not {values!r}")
    return values


def _per_block(name: str, values: object, depths: Sequence[int]) -> PerBlock:
    values = _per_stage(name, values if _is_sequence(values) else (values,) * STAGES)
    stages = []
    for stage, (value, depth) in enumerate(zip(values, depths, strict=True)):
        blocks = value if _is_sequence(value) else (value,) * depth
        if len(blocks) != depth:
            allowed = f"one number or {depth}, one per block"
            raise ValueError(f"{name}[{stage}] must be {allowed}, not {value!r}")
        stages.append(tuple(check_positive(f"{name}[{stage}]", block) for block in blocks))
    return tuple(stages)


def _check_widths(arch: Architecture) -> None:
    check_positive("arch['embed_dims']", arch.embed_dims)
    if arch.embed_dims < 16 or arch.embed_dims % 8:
        allowed = "a multiple of 8 and at least 16"  # the stem and the position bias divide it
        raise ValueError(f"arch['embed_dims'] must be {allowed}, not {arch.embed_dims}")
    for stage, heads in enumerate(arch.num_heads):
        if arch.channels(stage) % heads:
            channels = f"the {arch.channels(stage)} channels of the stage"
            raise ValueError(f"arch['num_heads'][{stage}] = {heads} must divide {channels}")
    if not isinstance(arch.amplitude_cooling, bool):
        raise TypeError(f"amplitude_cooling must be True or False, not {arch.amplitude_cooling!r}")
    if not isinstance(arch.drop_path_rate, (int, float)):
        raise TypeError(f"drop_path_rate must be a number, not {arch.drop_path_rate!r}")
    if not 0 <= arch.drop_path_rate < 1:
        raise ValueError(f"drop_path_rate must be in [0, 1), not {arch.drop_path_rate!r}")
