"""Measure speed and peak memory of the backbone, or of the whole model of a config.

In each round every variant is timed once, so that what disturbs the machine disturbs all alike.
"vs eager" is the time of the eager backend in PyTorch divided by the variant's; memory is the peak
of one step above what is held between steps.
"""

import json
import logging
import re
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path

import torch

from crossformer_mm.analysis import benchmark, floor
from crossformer_mm.analysis.correctness import Check, check_attention
from crossformer_mm.analysis.flops import DEFAULT_SHAPES
from crossformer_mm.analysis.variants import (
    ABLATIONS,
    ATTENTION,
    DEPLOYED,
    DTYPES,
    RUNS,
    SWIN,
    Case,
    Variant,
)
from crossformer_mm.engine.cfg_options import add_cfg_options
from crossformer_mm.engine.config import choose_shape, load_model_config, type_name
from crossformer_mm.models import LDA_MODES, CrossFormer
from crossformer_mm.models.architectures import ARCH_ZOO
from crossformer_mm.utils.cli import OneLineParser, errors_in_one_line, fail, run
from crossformer_mm.utils.collect_env import collect_env
from crossformer_mm.utils.io import atomic_write

INFERENCE = f"--device cpu --run {' '.join(run for run in RUNS if run != 'compile')}"
# Where score_thr stands in a detector's config, and for CrossFormer and Swin the one that leaves
# about 1000 boxes to suppress: random weights are sure of all boxes (RetinaNet) or of none.
THRESHOLDS = {
    "retinanet": ("model.test_cfg.score_thr", 0.9996, 0.9999),
    "mask-rcnn": ("model.test_cfg.rcnn.score_thr", 0.021, 0.031),
}


def _detectors() -> Iterator[str]:
    for detector, (key, own, swin) in THRESHOLDS.items():
        for rule in ("fixed_interval", "adaptive_interval"):
            config = f"configs/detection/{detector}_crossformer-s_fpn_1x_coco.py"
            options = f"{key}={own} model.backbone.lda_mode={rule}"
            yield f"{INFERENCE} --shape 800 1280 --config {config} --cfg-options {options}"
        config = f"mmdet::swin/{detector}_swin-t-p4-w7_fpn_1x_coco.py"
        yield f"{INFERENCE} --shape 800 1280 --config {config} --cfg-options {key}={swin}"


SUITES = {
    "cpu": f"""\
{INFERENCE} --against mmdet --batch 8
{INFERENCE} --against mmdet --shape 800 1280
--device cpu --mode train --batch 4
--device cpu --mode train --shape 800 1280
--device cpu --mode train --shape 800 1280 --with-cp""",
    "detectors": "\n".join(_detectors()),
    "gpu": """\
--device cuda --dtype bf16 --batch 256
--device cuda --dtype bf16 --run eager compile
--device cuda --dtype bf16 --batch 8 --shape 800 1280 --lda-mode fixed_interval
--device cuda --dtype bf16 --batch 8 --shape 800 1280 --lda-mode fixed_group
--device cuda --dtype bf16 --batch 8 --shape 800 1280 --lda-mode adaptive_interval
--device cuda --dtype bf16 --mode train --batch 128 --run eager compile
--device cuda --dtype bf16 --mode train --batch 2 --shape 800 1280 --run eager compile""",
}
KERNELS = ("sdpa", "triton", "flex")  # checked before a GPU's times


def parse_args(argv: Sequence[str] | None, args: Namespace | None = None) -> Namespace:
    """Read the command line, or a line of a suite into the options of the command line."""
    parser = OneLineParser(description=__doc__)
    add = parser.add_argument
    add("--arch", choices=ARCH_ZOO, help="architecture of the backbone; small if not set")
    add("--lda-mode", choices=LDA_MODES, help="rule of long distance attention")
    add("--with-cp", action="store_true", help="compute blocks again in the backward pass")
    whole = "whole model instead, without weights: a file, or a library's, such as mmdet::swin/..."
    add("--config", help=whole)
    add_cfg_options(parser)
    add("--attn-backend", nargs="+", choices=ATTENTION, help="auto and eager if not set")
    against = "libraries' Swin-T, or variants of the papers' ablations"
    add("--against", nargs="+", choices=(*SWIN, *ABLATIONS), default=[], help=against)
    runs = "compile: torch.compile; others: on a CPU, int8 calibrated on random images, for speed"
    add("--run", nargs="+", choices=RUNS, default=["eager"], help=runs)
    add("--shape", type=int, nargs="+", metavar="SIDE", help="height and width, or one for both")
    add("--batch", type=int, default=1, help="images per step")
    add("--mode", choices=("inference", "train"), default="inference", help="train: with AdamW")
    add("--dtype", choices=DTYPES, default="fp32", help="bf16 and fp16: with autocast")
    add("--device", choices=("cuda", "cpu"), help="the GPU if there is one")
    add("--repeat", type=int, default=10, help="rounds")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--no-memory", action="store_true", help="measure time only")
    add("--suite", choices=SUITES, help="measure a list of cases; other options hold for all")
    add("--out", metavar="DIR", help="write benchmark.json and .md: results and environment")
    return parser.parse_args(argv, args)


def make_case(args: Namespace) -> Case:
    """Put a case together from the options; what does not fit ends the program with one line."""
    options = vars(args)
    backbone = {k: options[k] for k in ("arch", "lda_mode", "with_cp") if options[k]}
    default = ["auto", "eager", *(KERNELS[1:] if args.suite == "gpu" else ())]
    backends, cfg, shape = args.attn_backend or default, None, args.shape or (224, 224)
    kind = CrossFormer.__name__
    if args.config is not None:
        for name in [name for name in (*backbone, "against") if options[name]]:
            fail(f"--{name.replace('_', '-')} is for a backbone: with --config use --cfg-options")
        cfg, shape = load_model_config(args.config, args.cfg_options), args.shape
        kind = type_name(cfg.model.backbone)
        if kind != CrossFormer.__name__:
            backends = [kind]
            if args.attn_backend:
                fail(f"--attn-backend: the backbone of {args.config} is {kind}, not CrossFormer")
    elif args.cfg_options:
        fail("--cfg-options needs --config")
    runs = [run for run in args.run if run not in DEPLOYED]
    variants = [Variant(name, run) for run in runs for name in backends + args.against]
    runs = [run for run in args.run if run in DEPLOYED]  # a file serves for all backends
    variants += [Variant(name, run) for name in [kind, *args.against] for run in runs]
    same = {name: options[name] for name in ("mode", "batch", "dtype", "repeat", "threads")}
    same["device"] = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    shape = choose_shape(shape, cfg or {}, DEFAULT_SHAPES)
    with errors_in_one_line(ValueError):
        return Case(tuple(dict.fromkeys(variants)), backbone, cfg, shape=shape, **same)


def check_first() -> list[Check]:
    """Compare the kernels with the formula; a wrong one ends the program with one line."""
    checks = check_attention(KERNELS, "cuda")
    print(*checks, sep="\n", end="\n\n", flush=True)
    wrong = [f"{check.name} in {check.dtype}" for check in checks if check.verdict == "wrong"]
    if wrong:
        fail(f"nothing was timed, since results are not the formula's: {', '.join(wrong)}")
    return checks


def main(argv: Sequence[str] | None = None) -> None:
    """Measure one case, or those of a suite one after another."""
    args = parse_args(argv)
    logging.disable(logging.WARNING)  # exporters write screens of what they could not simplify
    warnings.simplefilter("ignore")
    try:
        Path(args.out or ".").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--out {args.out} must be a folder that can be written to: {error.strerror}")
    lines = SUITES[args.suite].splitlines() if args.suite else [""]
    results, cases = [], [make_case(parse_args(line.split(), copy(args))) for line in lines]
    env, named = collect_env(), re.compile("Processor$|GPU |PyTorch$|Triton$|onnx|openvino$|nncf$")
    notes = [f"{name}: {value}" for name, value in env.items() if named.match(name)]
    print(*notes, sep="\n", end="\n\n", flush=True)
    notes += check_first() if args.suite == "gpu" else []
    for case in cases:
        results += benchmark.measure(case, with_memory=not args.no_memory)
        own = results[-len(case.variants) :]
        more = floor.describe(case) + benchmark.describe_boxes(own)
        print(benchmark.format_table(own), *more, sep="\n", end="\n\n", flush=True)
        notes += [f"{case}, {line}" for line in more]
        if args.out is not None:
            report = dict(env=env, results=[result.as_dict() for result in results])
            files = {
                "benchmark.json": json.dumps(report, indent=1, default=str) + "\n",
                "benchmark.md": benchmark.format_markdown(results, notes),
            }
            for name, text in files.items():
                with atomic_write(Path(args.out) / name) as temporary:
                    temporary.write_text(text)
    failed = sum(result.problem is not None for result in results)
    if failed:
        fail(f"{failed} of {len(results)} variants failed; the lines above say why")


if __name__ == "__main__":
    run(main)
