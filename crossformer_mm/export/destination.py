"""Where an exported file can be written."""

from pathlib import Path
from tempfile import TemporaryFile

from crossformer_mm.export.errors import ExportError


def check_destination(path: Path) -> None:
    """Raise ExportError if no file can be written there, before work is spent."""
    if path.is_dir():
        raise ExportError(f"OUT {path} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise ExportError(f"OUT {path}: folder {path.parent} does not exist")
    try:
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ExportError(f"OUT {path} cannot be written: {error.strerror}") from error
