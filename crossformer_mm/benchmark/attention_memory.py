"""Peak memory of long distance attention alone, by image size and rule of grouping."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil

import torch

from crossformer_mm.architectures import resolve_architecture
from crossformer_mm.benchmark.case import DTYPES, Case, Contender
from crossformer_mm.benchmark.peak_memory import peak_in_child, peak_on_gpu
from crossformer_mm.benchmark.results import Result, add_ratios
from crossformer_mm.benchmark.timing import reason_of
from crossformer_mm.models import LDA_MODES, GroupedAttention
from crossformer_mm.models.grouping import plan_groups

IMAGE_SIDES = (512, 1024, 1536, 2048)
STEM_STRIDE = 4
_WARM_UP_SIDE = 64


def measure_attention(
    case: Case, sides: Sequence[int] = IMAGE_SIDES, lda_modes: Sequence[str] = LDA_MODES
) -> Iterator[list[Result]]:
    """Give, for each image size, the peak memory of the first stage's LDA by rule and path.

    Args:
        case: Says the architecture, the paths, the batch, the mode, the dtype and the device.
        sides: Sides of the square images.
        lda_modes: Rules of long distance attention.
    """
    for side in sides:
        results = []
        for lda_mode in lda_modes:
            backbone = {**case.backbone, "lda_mode": lda_mode}
            sized = replace(case, shape=(side, side), backbone=backbone)
            group = [_measure_one(sized, contender) for contender in case.contenders]
            add_ratios(group)
            results += group
        yield results


def _measure_one(case: Case, contender: Contender) -> Result:
    result = Result(case, contender, title=f"attention {case.shape[0]} {case.backbone['lda_mode']}")
    try:
        if case.device == "cuda":
            result.peak_mb = peak_on_gpu(prepare_attention(case, contender))
        else:
            result.peak_mb = peak_in_child(prepare_attention, case, contender)
    except Exception as error:
        result.problem = f"memory unknown: {reason_of(error)}"
    return result


def prepare_attention(case: Case, contender: Contender) -> Callable[[], object]:
    """Build the attention of the first stage's last block and return what runs it once."""
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    options = {key: case.backbone.get(key) for key in ("group_size", "interval")}
    arch = resolve_architecture(case.backbone.get("arch", "small"), **options)
    attention = GroupedAttention(arch.embed_dims, arch.num_heads[0], contender.model)
    attention.to(case.device).train(case.mode == "train")

    def run(tokens: torch.Tensor) -> None:
        plan = plan_groups(
            *tokens.shape[1:3],
            arch.group_size[0][-1],
            arch.interval[0][-1],
            case.backbone["lda_mode"],
            long_distance=True,
        )
        is_half = case.dtype != "fp32"
        with (
            torch.set_grad_enabled(case.mode == "train"),
            torch.autocast(case.device, DTYPES[case.dtype] if is_half else None, enabled=is_half),
        ):
            output = attention(tokens, plan)
            if case.mode == "train":
                output.float().square().mean().backward()
        attention.zero_grad(set_to_none=True)

    def random_tokens(side: int, batch: int) -> torch.Tensor:
        size = ceil(side / STEM_STRIDE)
        return torch.rand(batch, size, size, arch.embed_dims, device=case.device)

    run(random_tokens(_WARM_UP_SIDE, 1))
    tokens = random_tokens(case.shape[0], case.batch).requires_grad_(case.mode == "train")

    def step() -> None:
        run(tokens)
        tokens.grad = None

    return step


def format_heading() -> str:
    """The heading of the columns of :func:`format_lines`."""
    modes = "".join(f"{f'{mode} (MB)':>24}" for mode in LDA_MODES)
    return f"{'size':>11} {'tokens':>8}  {'path':<8}{modes}"


def format_lines(results: Sequence[Result]) -> str:
    """For one image size a line per path with the peaks by rule, then what failed."""
    side = results[0].case.shape[0]
    tokens = ceil(side / STEM_STRIDE) ** 2
    peaks = {(r.contender.model, r.case.backbone["lda_mode"]): r.peak_mb for r in results}
    lines = []
    for path in dict.fromkeys(path for path, _ in peaks):
        cells = (peaks.get((path, mode)) for mode in LDA_MODES)
        numbers = "".join(f"{'-' if peak is None else f'{peak:.1f}':>24}" for peak in cells)
        lines.append(f"{f'{side} x {side}':>11} {tokens:>8}  {path:<8}{numbers}")
    lines += [f"{r.title}, {r.contender.model}: {r.problem}" for r in results if r.problem]
    return "\n".join(lines)
