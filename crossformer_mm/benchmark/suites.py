"""Lists of cases, each written as the options that tools/benchmark.py takes."""

import shlex
from pathlib import Path

DENSE = "--shape 800 1280"
DEVICES = {"cpu": "cpu", "gpu": "cuda"}
SUITES = {
    "cpu": (
        "--batch 8",
        f"{DENSE} --batch 1 --lda-mode fixed_interval",
        "--mode train --batch 4",
        "--mode train --shape 512 512 --batch 1",
        f"{DENSE} --batch 1 --mode train",
        f"{DENSE} --batch 1 --mode train --with-cp",
    ),
    "gpu": (
        "--dtype bf16 --batch 256",
        "--dtype bf16 --batch 1",
        f"{DENSE} --dtype bf16 --batch 8 --lda-mode fixed_interval",
        f"{DENSE} --dtype bf16 --batch 8 --lda-mode fixed_group --against",
        f"{DENSE} --dtype bf16 --batch 8 --lda-mode adaptive_interval --against",
        "--mode train --dtype bf16 --batch 128",
        f"{DENSE} --mode train --dtype bf16 --batch 2",
        "--attention-memory --dtype bf16",
        # Compiling takes minutes: what is measured before it is kept if time runs out.
        "--mode train --dtype bf16 --batch 128 --run compile",
        f"{DENSE} --mode train --dtype bf16 --batch 2 --run compile",
        # Last, since a graph that cannot be recorded may leave PyTorch's random numbers unusable.
        "--dtype bf16 --batch 1 --run eager compile cudagraph",
    ),
}


def read_suite(name: str) -> list[list[str]]:
    """Read the options of every case.

    Args:
        name: ``'cpu'``, ``'gpu'`` or a file with a case per line, where ``#`` starts a comment.

    Raises:
        ValueError: If there is no such suite or file, or it names no case.
    """
    if name in SUITES:
        lines = [f"--device {DEVICES[name]} {options}" for options in SUITES[name]]
    elif Path(name).is_file():
        lines = Path(name).read_text().splitlines()
    else:
        raise ValueError(f"--suite {name}: choose {', '.join(SUITES)} or an existing file")
    cases = [shlex.split(line, comments=True) for line in lines]
    cases = [options for options in cases if options]
    if not cases:
        raise ValueError(f"--suite {name}: the file has no case, write the options of one per line")
    return cases
