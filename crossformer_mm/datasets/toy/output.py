"""Puts a data set in place whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

README = "README.txt"  # tells toy data from a public data set whose own files could not say so
_README_MARK = "Toy data set drawn by crossformer_mm"


def write_readme(path: Path, description: str) -> None:
    """Write the one line by which ``refuse_other_data`` knows a data set as a toy."""
    path.write_text(f"{_README_MARK}: {description}\n")


def refuse_other_data(
    out: Path, names: Sequence[str], marked_file: str, mark: str = _README_MARK
) -> None:
    """Raise FileExistsError if one of ``names`` is in ``out``, but is not toy data.

    It is if ``marked_file``, which is relative to ``out``, contains ``mark``.
    """
    present = [out / name for name in names if (out / name).exists()]
    file = out / marked_file
    if present and not (file.is_file() and mark in file.read_text()):
        raise FileExistsError(f"{present[0]} is not a toy data set, and is not replaced")


@contextmanager
def all_or_nothing(
    out: Path, folders: Sequence[str], overwrite: bool, files: Sequence[str] = ()
) -> Iterator[Path]:
    """Give a temporary folder to fill, with a sub-folder for each of ``folders``.

    Only when the block ends without an error do the sub-folders move to ``out``, together with the
    ``files`` that the block has put beside them; otherwise ``out`` is as it was. Whatever else is
    in ``out`` stays untouched. FileExistsError: one of them is in ``out`` already and ``overwrite``
    is off; with it on, they are replaced as a whole.
    """
    names = [*folders, *files]
    present = [out / name for name in names if (out / name).exists()]
    if present and not overwrite:
        raise FileExistsError(f"{present[0]} already exists (--overwrite replaces it)")
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    # Inside out, so that moving is a rename even where out is a mount or a link to another disk.
    folder = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out))
    try:
        for name in folders:
            (folder / name).mkdir()
        yield folder
        old = [(path, folder / f"old-{path.name}") for path in present]
        _rename_all(old + [(folder / name, out / name) for name in names])
        is_new = False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # not empty: someone else has put something there
                out.rmdir()


def _rename_all(pairs):
    """Rename each source to its target, or, where one of them fails, none."""
    done = []
    try:
        for source, target in pairs:
            source.rename(target)
            done.append((source, target))
    except OSError:
        for source, target in reversed(done):
            target.rename(source)
        raise
