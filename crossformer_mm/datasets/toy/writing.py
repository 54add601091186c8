"""Writes the files of a toy data set: all of them, or none."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

MAX_IMAGES = 500_000  # per split
_MARK = "Toy data set drawn by crossformer_mm"


def writer(names: str, draw: Callable, finish: Callable, defaults: tuple) -> Callable:
    """Make the function that writes a data set of the folders and files ``names``, one word each.

    ``draw(rng, split, index, shape)`` returns {path: pixels} of an image, a record of it, and, by
    key of the summary, what it shows. ``finish(folder, split, records)`` writes the other files.
    """

    def write(
        out: str | Path,
        train: int = defaults[0],
        val: int = defaults[1],
        size: tuple[int, int] = defaults[2],
        seed: int = 0,
        overwrite: bool = False,
        report: Callable[[str], None] = print,
    ) -> dict[str, dict]:
        """Write ``train`` + ``val`` images of about ``size`` (width, height) to ``out``.

        Returns, per split, the number of "images" and Counters of what they show. ValueError: an
        argument is out of range. FileExistsError: data is there that must not be replaced.
        """
        _check_arguments(train, val, *size, seed)
        summary: dict[str, dict] = {"train": {"images": train}, "val": {"images": val}}
        with _all_or_nothing(Path(out), names.split(), overwrite) as folder:
            for split, made in summary.items():
                records = []
                for index in range(made["images"]):
                    rng = np.random.default_rng((seed, split == "val", index))
                    shape = tuple(size[::-1] if rng.uniform() < 0.8 else size)
                    files, record, shown = draw(rng, split, index, shape)
                    records.append(record)
                    for path, pixels in files.items():
                        (folder / path).parent.mkdir(parents=True, exist_ok=True)
                        # cv2.imwrite would not raise if the disk is full.
                        (folder / path).write_bytes(cv2.imencode(Path(path).suffix, pixels)[1])
                    for key, class_names in shown.items():
                        made.setdefault(key, Counter()).update(class_names)
                finish(folder, split, records)
                report(f"{split}: {len(records)} images written")
        return summary

    return write


def _check_arguments(*values: int) -> None:
    names = ("train", "val", "size (width)", "size (height)", "seed")
    limits = [(1, MAX_IMAGES)] * 2 + [(96, 4096)] * 2 + [(0, 2**63)]
    for name, value, (least, most) in zip(names, values, limits, strict=True):
        if not least <= value <= most:
            raise ValueError(f"{name} is {value}, but must be from {least} to {most}")


@contextmanager
def _all_or_nothing(out: Path, names: list[str], overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder whose ``names`` move to ``out`` when the block ends without error."""
    present, readme = [out / x for x in names if (out / x).exists()], f"{names[0]}/README.txt"
    is_toy = (out / readme).is_file() and _MARK in (out / readme).read_text()
    if present and not (overwrite and is_toy):
        hint = "--overwrite replaces it" if is_toy else "it is not a toy data set"
        raise FileExistsError(f"{present[0]} already exists ({hint})")
    # Inside out if it is there, so that moving is a rename even where out is a mount or a link.
    base = out if out.exists() else out.parent
    base.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".unfinished-", dir=base) as folder, ExitStack() as undo:
        Path(folder, names[0]).mkdir()
        Path(folder, readme).write_text(_MARK)
        yield Path(folder)
        out.mkdir(exist_ok=True)
        moves = [(path, Path(folder, f"old-{path.name}")) for path in present]
        for source, target in moves + [(Path(folder, name), out / name) for name in names]:
            undo.callback(source.rename(target).rename, source)
        undo.pop_all()
