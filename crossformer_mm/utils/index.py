"""Where the configs and metafiles are: in the installed package, or around its source."""

from pathlib import Path

METAFILE = Path("configs/classification/metafile.yml")
PACKAGE = Path(__file__).parents[1]


def find_index_root() -> Path:
    """Find the folder that has ``configs``, or raise FileNotFoundError."""
    for root in (PACKAGE / ".mim", PACKAGE.parent):
        if (root / METAFILE).is_file():
            return root
    raise FileNotFoundError(
        f"{METAFILE} is neither in {PACKAGE}/.mim nor beside the package: install it again"
    )
