"""Measure speed and peak memory of the backbone, or of the whole model of a config.

Every contender runs once before any runs again, in one process, so that what disturbs the machine
disturbs all alike. Compared are CrossFormer's default way to compute attention, its plain way, and
for a backbone the Swin-T of mmdet, mmpretrain and timm where they are installed. Memory is the
peak of one repetition above what is held between repetitions (weights, images, optimizer), on a
CPU measured in a process of its own for every contender.
"""

import logging
import shlex
from argparse import Namespace, RawDescriptionHelpFormatter
from copy import copy
from pathlib import Path

from crossformer_mm.benchmark.attention_memory import (
    format_heading,
    format_lines,
    measure_attention,
)
from crossformer_mm.benchmark.case import Case, describe_step
from crossformer_mm.benchmark.circumstances import describe_circumstances
from crossformer_mm.benchmark.measure import measure
from crossformer_mm.benchmark.models import read_config
from crossformer_mm.benchmark.options import OneLineParser, add_arguments, make_case
from crossformer_mm.benchmark.report import format_table, write_results
from crossformer_mm.benchmark.results import Result
from crossformer_mm.benchmark.suites import read_suite
from crossformer_mm.benchmark.throughput import format_throughput, measure_throughput
from crossformer_mm.benchmark.timing import reason_of
from crossformer_mm.launch import fail


def parse_args() -> tuple[Namespace, OneLineParser]:
    """Read the command line, and return the parser for the lines of a suite."""
    parser = OneLineParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add_arguments(parser)
    return parser.parse_args(), parser


def run_case(args: Namespace) -> list[Result]:
    """Measure what the options describe, and print it."""
    if args.throughput and args.config is None:
        fail("--throughput needs --config, which says where the images are")
    if args.attention_memory and args.config is not None:
        fail("--attention-memory is for a backbone: use --arch instead of --config")
    case = make_case(args)
    if args.throughput:
        results = measure_throughput(read_config(case), case)
        print(*map(format_throughput, results), sep="\n", flush=True)
        return results
    if args.attention_memory:
        return run_attention(case)
    results = measure(case, with_memory=not args.no_memory)
    print(format_table(results), f"timed: {describe_step(case)}\n", sep="\n", flush=True)
    return results


def run_attention(case: Case) -> list[Result]:
    """Measure attention alone, and print a line per image size."""
    print(f"long distance attention alone, b{case.batch} {case.mode} {case.dtype}")
    print(format_heading(), flush=True)
    results = []
    for of_one_size in measure_attention(case):
        print(format_lines(of_one_size), flush=True)
        results += of_one_size
    return results


def run_suite(args: Namespace, parser: OneLineParser, keep: list[Result]) -> None:
    """Run the cases of a suite, and put what they give into ``keep``; one may fail, all are run."""
    try:
        cases = read_suite(args.suite)
    except ValueError as error:
        fail(str(error))
    failed = 0
    for options in cases:
        try:
            case_args = parser.parse_args(options, copy(args))
            if case_args.suite != args.suite:
                fail("--suite cannot be inside a suite")
            keep += run_case(case_args)
            write_if_asked(args, keep)
        except (Exception, SystemExit) as error:
            reason = str(error) if isinstance(error, SystemExit) else reason_of(error)
            print(f"{shlex.join(options)}\nfailed: {reason}\n", flush=True)
            failed += 1
    if failed:
        fail(f"{failed} of {len(cases)} cases failed; the lines above say why")


def write_if_asked(args: Namespace, results: list[Result]) -> None:
    """Write what was measured so far to the folder of ``--out``."""
    if args.out is not None:
        device = results[0].case.device if results else "cpu"
        write_results(Path(args.out), results, describe_circumstances(device))


def check_out(folder: str | None) -> None:
    """Make the folder of ``--out`` before anything is measured."""
    try:
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--out {folder} must be a folder that can be written to: {error.strerror}")


def main() -> None:
    """Measure one case or a suite."""
    args, parser = parse_args()
    logging.disable(logging.INFO)
    check_out(args.out)
    results: list[Result] = []
    if args.suite is not None:
        run_suite(args, parser, results)
    else:
        results += run_case(args)
        write_if_asked(args, results)
    if not any(result.seconds or result.peak_mb is not None for result in results):
        fail("nothing could be measured; the lines above say why")


if __name__ == "__main__":
    main()
