"""Measure speed and peak memory of the backbone, or of the whole model of a config.

In each round every variant is timed once, so that what disturbs the machine disturbs all alike.
"vs eager" is the eager backend's time divided by the variant's; memory is the peak of one step
above what is held between steps.
"""

import logging
from argparse import ArgumentParser, Namespace
from copy import copy
from pathlib import Path

import torch

from crossformer_mm.analysis.benchmark import format_table, measure, write_report
from crossformer_mm.analysis.flops import DEFAULT_SHAPES
from crossformer_mm.analysis.variants import DTYPES, LIBRARIES, RUNS, Case, Variant
from crossformer_mm.engine.launch import add_cfg_options, fail, load_config, shape_for_task
from crossformer_mm.models import ATTN_BACKENDS, LDA_MODES, CrossFormer
from crossformer_mm.models.architectures import ARCH_ZOO

SUITES = {
    "cpu": """\
--device cpu --batch 8
--device cpu --shape 800 1280
--device cpu --mode train --batch 4
--device cpu --mode train --shape 512
--device cpu --mode train --shape 800 1280
--device cpu --mode train --shape 800 1280 --with-cp""",
    "gpu": """\
--device cuda --dtype bf16 --batch 256
--device cuda --dtype bf16 --run eager compile
--device cuda --dtype bf16 --batch 8 --shape 800 1280 --lda-mode fixed_interval
--device cuda --dtype bf16 --batch 8 --shape 800 1280 --lda-mode fixed_group
--device cuda --dtype bf16 --batch 8 --shape 800 1280 --lda-mode adaptive_interval
--device cuda --dtype bf16 --mode train --batch 128 --run eager compile
--device cuda --dtype bf16 --mode train --batch 2 --shape 800 1280 --run eager compile""",
}


class OneLineParser(ArgumentParser):
    """A parser that ends the program with one line when an argument is wrong."""

    def error(self, message: str) -> None:  # noqa: D102
        fail(message)


def make_parser() -> OneLineParser:
    """The options of the command line, and of every line of a suite."""
    parser = OneLineParser(description=__doc__)
    add = parser.add_argument
    add("--arch", choices=ARCH_ZOO, help="architecture of the backbone; small if not set")
    add("--lda-mode", choices=LDA_MODES, help="rule of long distance attention")
    add("--with-cp", action="store_true", help="compute blocks again in the backward pass")
    add("--config", help="measure the whole model of this config instead, without weights")
    add_cfg_options(parser)
    add("--attn-backend", nargs="+", choices=ATTN_BACKENDS, help="auto and eager if not set")
    add("--against", nargs="+", choices=LIBRARIES, default=[], help="libraries' Swin-T")
    add("--run", nargs="+", choices=RUNS, default=["eager"], help="compile: with torch.compile")
    add("--shape", type=int, nargs="+", metavar="SIDE", help="height and width, or one for both")
    add("--batch", type=int, default=1, help="images per step")
    add("--mode", choices=("inference", "train"), default="inference", help="train: with AdamW")
    add("--dtype", choices=DTYPES, default="fp32", help="bf16 and fp16: with autocast")
    add("--device", choices=("cuda", "cpu"), help="the GPU if there is one")
    add("--repeat", type=int, default=10, help="rounds")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--no-memory", action="store_true", help="measure time only")
    add("--suite", choices=SUITES, help="measure a list of cases; other options hold for all")
    add("--out", metavar="DIR", help="write benchmark.json there: results and environment")
    return parser


def make_case(args: Namespace) -> Case:
    """Put a case together from the options; what does not fit ends the program with one line."""
    backbone = {k: getattr(args, k) for k in ("arch", "lda_mode", "with_cp") if getattr(args, k)}
    backends, cfg, shape = args.attn_backend or ["auto", "eager"], None, args.shape or (224, 224)
    if args.config is not None:
        for name in [name for name in (*backbone, "against") if getattr(args, name)]:
            fail(f"--{name.replace('_', '-')} is for a backbone: with --config use --cfg-options")
        cfg = load_config(args.config, args.cfg_options)
        kind = cfg.get("model", {}).get("backbone", {}).get("type")
        kind = getattr(kind, "__name__", kind)  # some configs have the class itself
        if kind is None:
            fail(f"--config {args.config} has no model with a backbone")
        if kind != CrossFormer.__name__ and args.attn_backend:
            fail(f"--attn-backend: the backbone of {args.config} is {kind}, not CrossFormer")
        backends = backends if kind == CrossFormer.__name__ else [kind]
        shape = args.shape or shape_for_task(cfg, DEFAULT_SHAPES)
    elif args.cfg_options:
        fail("--cfg-options needs --config")
    variants = [Variant(name, run) for run in args.run for name in backends + args.against]
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    same = {name: getattr(args, name) for name in ("mode", "batch", "dtype", "repeat", "threads")}
    shape = tuple(shape * 2 if len(shape) == 1 else shape)
    try:
        return Case(
            tuple(dict.fromkeys(variants)), backbone, cfg, shape=shape, device=device, **same
        )
    except ValueError as error:
        fail(str(error))


def main() -> None:
    """Measure one case, or those of a suite one after another."""
    parser = make_parser()
    args = parser.parse_args()
    logging.disable(logging.INFO)
    try:
        Path(args.out or ".").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--out {args.out} must be a folder that can be written to: {error.strerror}")
    lines = SUITES[args.suite].splitlines() if args.suite else [""]
    cases = [make_case(parser.parse_args(line.split(), copy(args))) for line in lines]
    results = []
    for case in cases:
        results += measure(case, with_memory=not args.no_memory)
        print(format_table(results[-len(case.variants) :]), end="\n\n", flush=True)
        if args.out is not None:
            write_report(Path(args.out), results)
    failed = sum(result.problem is not None for result in results)
    if failed:
        fail(f"{failed} of {len(results)} variants failed; the lines above say why")


if __name__ == "__main__":
    main()
