"""The command line of tools/benchmark.py, and the case that it describes."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from ast import literal_eval
from collections.abc import Callable
from dataclasses import replace

import torch

from crossformer_mm.benchmark.case import (
    BASELINE,
    DEFAULT_PATH,
    DTYPES,
    MODES,
    RUNS,
    Case,
    Contender,
    own_contenders,
)
from crossformer_mm.benchmark.models import SWIN_BUILDERS, read_config
from crossformer_mm.benchmark.suites import SUITES
from crossformer_mm.flops import DEFAULT_SHAPES
from crossformer_mm.launch import add_cfg_options, check_data, fail, require
from crossformer_mm.models import ATTENTION_PATHS, LDA_MODES, CrossFormer
from crossformer_mm.models.crossformer import MIN_IMAGE_SIZE

DEFAULT_REPEAT, DEFAULT_WARMUP = 10, 3
THROUGHPUT_REPEAT, THROUGHPUT_WARMUP = 30, 50  # as in the authors' training program
BACKBONE_OPTIONS = ("arch", "group_size", "interval", "lda_mode", "with_cp", "against")


class OneLineParser(ArgumentParser):
    """A parser that ends the program with one line when an argument is wrong."""

    def error(self, message: str) -> None:  # noqa: D102
        fail(message)


def add_arguments(parser: ArgumentParser) -> None:
    """Add all options."""
    _add_what(parser)
    _add_how(parser)
    other = parser.add_argument_group("other measurements")
    other.add_argument(
        "--throughput",
        action="store_true",
        help="with --config: images per second over the test data loader's images; "
        f"{THROUGHPUT_WARMUP} batches to warm up, then {THROUGHPUT_REPEAT} passes of one batch",
    )
    other.add_argument(
        "--attention-memory",
        action="store_true",
        help="peak memory of the first stage's long distance attention alone, for images of 512 "
        "to 2048 pixels a side and each --lda-mode; of the plain path only with --paths plain, "
        "since it can take more than there is",
    )
    other.add_argument(
        "--suite",
        metavar="NAME",
        help=f"a list of cases: {', '.join(SUITES)}, or a file with the options of one case per "
        "line; options given beside it hold for all cases that do not set them",
    )
    other.add_argument("--out", metavar="DIR", help="write results.csv and results.json there")


def _add_what(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("what to measure")
    group.add_argument(
        "--arch", type=_architecture, help="name, or a dict in Python's notation; small if not set"
    )
    group.add_argument("--group-size", type=_at_least(1), nargs="+", metavar="N", help="1 or 4")
    group.add_argument("--interval", type=_at_least(1), nargs="+", metavar="N", help="1 or 4")
    group.add_argument("--lda-mode", choices=LDA_MODES, help="rule of long distance attention")
    group.add_argument(
        "--with-cp", action="store_true", help="recompute blocks in the backward pass"
    )
    group.add_argument("--config", help="measure the whole model of this config instead")
    add_cfg_options(group)
    group.add_argument(
        "--paths",
        nargs="+",
        choices=ATTENTION_PATHS,
        help=f"CrossFormer's ways to compute attention; {DEFAULT_PATH} if not set; {BASELINE} is "
        "added wherever times are compared",
    )
    group.add_argument(
        "--against",
        nargs="*",
        choices=list(SWIN_BUILDERS),
        help="libraries whose Swin-T to compare a backbone with; all if not set, none if empty",
    )


def _add_how(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("how to measure")
    group.add_argument(
        "--shape",
        type=_at_least(MIN_IMAGE_SIZE),
        nargs="+",
        metavar="SIDE",
        help="height and width of the images, or one number for both; if not set, 224, and the "
        "published tables' sizes for detectors and segmentors",
    )
    group.add_argument("--batch", type=_at_least(1), default=1, help="images per repetition")
    group.add_argument(
        "--mode", choices=MODES, default="inference", help="train: forward, backward and AdamW"
    )
    group.add_argument(
        "--dtype", choices=list(DTYPES), default="fp32", help="other than fp32: with autocast"
    )
    group.add_argument(
        "--run",
        nargs="+",
        choices=RUNS,
        default=["eager"],
        help="compile: the backbone with torch.compile; cudagraph: inference on a GPU",
    )
    group.add_argument("--device", choices=["cuda", "cpu"], help="the GPU if there is one")
    group.add_argument(
        "--repeat", type=_at_least(1), help=f"timed repetitions; {DEFAULT_REPEAT} if not set"
    )
    group.add_argument(
        "--warmup", type=_at_least(0), help=f"untimed ones before; {DEFAULT_WARMUP} if not set"
    )
    group.add_argument("--threads", type=_at_least(1), help="CPU threads")
    group.add_argument("--no-memory", action="store_true", help="measure time only")


def _at_least(least: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ArgumentTypeError(f"{text!r} must be a whole number of at least {least}")
        return int(text)

    return convert


def _architecture(text: str) -> str | dict:
    if not text.startswith("{"):
        return text
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ArgumentTypeError(f"{text!r} is not a dict in Python's notation") from error


def make_case(args: Namespace) -> Case:
    """Put a case together from the options; what does not fit ends the program with one line."""
    try:
        case = Case(
            contenders=_choose_contenders(args),
            backbone={} if args.config else _backbone_arguments(args),
            config=args.config,
            cfg_options=args.cfg_options or {},
            mode=args.mode,
            batch=args.batch,
            dtype=args.dtype,
            device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            repeat=args.repeat or (THROUGHPUT_REPEAT if args.throughput else DEFAULT_REPEAT),
            warmup=_first_set(
                args.warmup, THROUGHPUT_WARMUP if args.throughput else DEFAULT_WARMUP
            ),
            threads=args.threads,
        )
    except ValueError as error:
        fail(str(error))
    if args.config is None:
        _check_backbone(case)
        return replace(case, shape=_choose_shape(args.shape, (224, 224)))
    return replace(case, shape=_choose_shape(args.shape, _check_config(args, case)))


def _choose_contenders(args: Namespace) -> tuple[Contender, ...]:
    if args.throughput:
        return tuple(Contender(path, run) for run in args.run for path in _given_paths(args))
    if args.attention_memory:  # the plain path can take more than there is
        return tuple(Contender(path) for path in _given_paths(args))
    own = own_contenders(args.paths, args.run)
    if args.config is not None:
        return own
    libraries = _first_set(args.against, list(SWIN_BUILDERS))
    return own + tuple(Contender(library, run) for run in args.run for library in libraries)


def _given_paths(args: Namespace) -> list[str]:
    return args.paths or [DEFAULT_PATH]


def _first_set(*values: object) -> object:
    return next((value for value in values if value is not None), None)


def _backbone_arguments(args: Namespace) -> dict:
    options = {name: getattr(args, name) for name in BACKBONE_OPTIONS if name != "against"}
    for name in ("group_size", "interval"):
        if options[name] is not None and len(options[name]) == 1:
            options[name] = options[name][0]
    given = {name: value for name, value in options.items() if value not in (None, False)}
    return {"arch": "small", **given}


def _check_backbone(case: Case) -> None:
    try:
        with torch.device("meta"):
            CrossFormer(**case.backbone)
    except (ValueError, TypeError) as error:
        fail(f"--arch, --group-size or --interval: {error}")


def _check_config(args: Namespace, case: Case) -> tuple[int, int]:
    """Check what comes with a config, and return the usual image size for it."""
    for name in BACKBONE_OPTIONS:
        if getattr(args, name) not in (None, False, []):
            option = f"--{name.replace('_', '-')}"
            fail(f"{option} is for a backbone: with --config use --cfg-options model.backbone...")
    cfg = read_config(case)
    kind = cfg.get("model", {}).get("backbone", {}).get("type")
    if kind != CrossFormer.__name__:
        fail(f"--config {args.config}: its backbone is {kind}, not CrossFormer")
    if args.throughput:
        require(cfg, ("test_dataloader",), "--throughput")
        check_data(cfg, "test_dataloader")
    return DEFAULT_SHAPES.get(cfg.get("default_scope"), (224, 224))


def _choose_shape(given: list[int] | None, usual: tuple[int, int]) -> tuple[int, int]:
    if given is None:
        return usual
    if len(given) > 2:
        fail(f"--shape {' '.join(map(str, given))}: give height and width, or one number for both")
    return given[0], given[-1]
