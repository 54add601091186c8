"""Puts a data set in place whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def all_or_nothing(out: Path, names: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder to fill, with a sub-folder for each of ``names``.

    Only when the block ends without an error do the sub-folders move to ``out``; otherwise ``out``
    is as it was. Whatever else is in ``out`` stays untouched. FileExistsError: one of ``names`` is
    in ``out`` already and ``overwrite`` is off; with it on, they are replaced as a whole.
    """
    present = [out / name for name in names if (out / name).exists()]
    if present and not overwrite:
        raise FileExistsError(f"{present[0]} already exists (--overwrite replaces it)")
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    # Inside out, so that moving is a rename even where out is a mount or a link to another disk.
    folder = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out))
    try:
        for name in names:
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
